"""A compiled document that is read: its memory stays within the limit, its readings equal fresh ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from compiled_books import QUESTION, book_of, tiny_reader
from hypothesis import given
from hypothesis import strategies as st

from longctx import Reader
from longctx.compiled import CompiledDocument, Memory
from longctx.latest import Latest

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Blob:
    size: int
    name: int = 0

    @property
    def nbytes(self) -> int:
        return self.size


OPERATIONS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 14)), max_size=60)


@given(OPERATIONS, st.integers(0, 20))
def test_memory_never_passes_its_limit_and_keeps_what_was_used_last(operations: list[Any], limit: int) -> None:
    memory = Memory(limit)
    model: list[tuple[int, Blob]] = []  # longest unused first
    for step, (key, size) in enumerate(operations):
        if step % 3 == 2 and key in memory:
            (blob,) = [b for k, b in model if k == key]
            assert memory.get(key) is blob
            model = [*((k, b) for k, b in model if k != key), (key, blob)]
        else:
            blob = Blob(size, step)
            memory.put(key, blob)
            model = [(k, b) for k, b in model if k != key]
            if size <= limit:
                while sum(b.nbytes for _, b in model) + size > limit:
                    model.pop(0)
                model.append((key, blob))
        assert memory.used_bytes == sum(b.nbytes for _, b in model) <= limit
        assert len(memory) == len(model) and all(k in memory for k, _ in model)
        assert memory.get(99) is None


class Interrupting:
    """Lets another thread put something in whenever its own size is looked at."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.others: list[threading.Thread] = []

    @property
    def nbytes(self) -> int:
        self.others.append(threading.Thread(target=self.memory.put, args=(2 + len(self.others), Blob(30))))
        self.others[-1].start()
        self.others[-1].join(0.05)  # as long as it takes a thread that is not held back
        return 30


def test_two_threads_together_do_not_pass_the_limit() -> None:
    memory = Memory(40)
    blob = Interrupting(memory)
    memory.put(1, blob)
    for other in blob.others:  # grows while it is walked
        other.join()
    assert memory.used_bytes == 30 and len(memory) == 1


@pytest.fixture(scope="module")
def reader() -> Reader:
    return tiny_reader()


def fresh(reader: Reader, book: CompiledDocument, segment: int, inquiry: Any) -> tuple[np.ndarray, np.ndarray]:
    """Attention of every head and question likelihood by one eager pass over [prefix + segment + question]."""
    prefix = book.probe.frame.before  # type: ignore[attr-defined]
    own = book.segment_ids(segment).tolist()
    ids = torch.tensor([[*prefix, *own, *inquiry.ids]])
    with torch.inference_mode():
        out = reader.model(ids, output_attentions=True)
    at = len(prefix) + len(own)
    first, last = inquiry.rows
    maps = torch.cat([layer[0] for layer in out.attentions])[:, at + first : at + last, len(prefix) : at].mean(1)
    laws = out.logits[0].log_softmax(-1)
    first, last = inquiry.question
    where = torch.arange(at + first, at + last)
    return maps.numpy(), laws[where - 1, ids[0, where]].numpy()


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_readings_equal_fresh_ones_however_little_memory_there_is_and_whatever_was_asked_before(
    reader: Reader, share: float
) -> None:
    whole = book_of(reader, 2**40)
    list(whole.read(range(len(whole.segments))))
    book = book_of(reader, int(share * whole.memory.used_bytes))
    count = len(book.segments)
    assert count >= 4
    orders = (range(count), reversed(range(count)), [2, 0], range(count))
    questions = (QUESTION, QUESTION, "Which room?", QUESTION)
    for question, order in zip(questions, orders, strict=True):
        inquiry = book.probe.inquiry(question, heads=None, likelihood=True)
        order = list(order)
        found = dict(book.ask(order, inquiry))
        assert sorted(found) == sorted(order)
        assert book.memory.used_bytes <= book.memory.limit_bytes
        for segment in order[:3]:
            attention, likelihood = fresh(reader, book, segment, inquiry)
            np.testing.assert_allclose(found[segment].attention, attention, atol=1e-4)
            np.testing.assert_allclose(found[segment].likelihood, likelihood, atol=1e-3)


def test_what_is_spent_is_what_went_through_the_model(reader: Reader) -> None:
    book = book_of(reader, 2**40)
    everything = range(len(book.segments))
    one, two = (book.probe.inquiry(question, likelihood=True) for question in (QUESTION, "Which room is it?"))
    spent = [book.spent()]
    for inquiry in (one, two, two):
        list(book.ask(everything, inquiry))
        spent.append(book.spent())
    costs = np.diff(spent).tolist()
    assert costs == [book.tokens + len(book.segments) * len(one.ids), len(book.segments) * len(two.ids), 0]


def test_a_question_for_early_layers_reads_no_further_and_a_later_one_reads_the_rest(reader: Reader) -> None:
    book = book_of(reader, 2**40)
    everything = range(len(book.segments))
    early = book.probe.inquiry(QUESTION, heads=((0, 1),))
    first = dict(book.ask(everything, early))
    assert {book.memory.get(segment).depth for segment in everything} == {1}
    for segment in everything:
        np.testing.assert_allclose(first[segment].attention[0], fresh(reader, book, segment, early)[0][1], atol=1e-4)
    spent = book.spent()
    deep = book.probe.inquiry("Which room?", heads=None, likelihood=True)
    found = dict(book.ask(everything, deep))
    assert book.spent() == spent + book.tokens + len(everything) * len(deep.ids)
    assert {book.memory.get(segment).depth for segment in everything} == {2}
    for segment in everything:
        attention, likelihood = fresh(reader, book, segment, deep)
        np.testing.assert_allclose(found[segment].attention, attention, atol=1e-4)
        np.testing.assert_allclose(found[segment].likelihood, likelihood, atol=1e-3)
    spent = book.spent()
    dict(book.ask(everything, book.probe.inquiry("Whose lamp?", heads=((0, 0),))))
    assert book.spent() - spent < book.tokens, "what is at hand of all layers serves early ones too"


def test_an_ask_given_up_halfway_loses_nothing(reader: Reader) -> None:
    book = book_of(reader, 2**40)
    inquiry = book.probe.inquiry(QUESTION, likelihood=True)
    asking = book.ask(range(len(book.segments)), inquiry)
    next(asking)
    asking.close()  # type: ignore[attr-defined]
    found = dict(book.ask(range(len(book.segments)), inquiry))
    other = dict(book_of(reader, 0).ask(range(len(book.segments)), inquiry))
    assert sorted(found) == sorted(other) == list(range(len(book.segments)))
    for segment in found:
        np.testing.assert_allclose(found[segment].likelihood, other[segment].likelihood, atol=1e-4)


def test_laws_over_the_vocabulary_are_kept_as_far_as_there_is_room(reader: Reader) -> None:
    book = book_of(reader, 0)
    inquiry = book.probe.inquiry(QUESTION, next_token=True)
    size = sum(a.nbytes for _, r in book.ask([0], inquiry) for a in (r.attention, r.likelihood, r.next_token))
    for limit, kept in ((2 * size, 2), (2 * size - 1, 1), (size - 1, 0)):
        book._latest = Latest(limit)
        list(book.ask([0, 1], inquiry))
        before = book.spent()
        list(book.ask([0, 1], inquiry))
        read = sum(len(book.segment_ids(segment)) + len(inquiry.ids) for segment in range(kept, 2))
        assert book.spent() - before == read


def test_progress_is_told_of_reading_and_the_earlier_listener_is_back_afterwards(reader: Reader) -> None:
    book = book_of(reader, 0)
    outer: list[tuple[str, int, int]] = []
    inner: list[tuple[str, int, int]] = []

    def stop(stage: str, done: int, total: int) -> None:
        inner.append((stage, done, total))
        if done == 2:
            raise KeyboardInterrupt

    with book.reporting(lambda *at: outer.append(at)):
        with pytest.raises(KeyboardInterrupt), book.reporting(stop):
            list(book.read([0, 1, 2]))
        list(book.read([0, 1]))
    list(book.read([2]))
    assert inner == [("reading", 1, 3), ("reading", 2, 3)] and outer == [("reading", 1, 2), ("reading", 2, 2)]


def test_two_threads_that_ask_one_document_hear_of_their_own_work_and_pay_for_it(reader: Reader) -> None:
    book = book_of(reader, 0)
    both, told, spent = threading.Barrier(2, timeout=60), {}, {}

    def work(name: str, segments: list[int]) -> None:
        own: list[tuple[str, int, int]] = []
        with book.reporting(lambda *at: own.append(at)):
            both.wait()  # both listen before either reads
            list(book.read(segments))
            both.wait()
        told[name], spent[name] = own, book.spent()

    threads = [threading.Thread(target=work, args=arguments) for arguments in (("a", [0, 1, 2]), ("b", [3]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == {"a": [("reading", i, 3) for i in (1, 2, 3)], "b": [("reading", 1, 1)]}
    assert spent == {"a": sum(len(book.segment_ids(i)) for i in range(3)), "b": len(book.segment_ids(3))}


def test_reading_hands_out_segments_in_memory_first(reader: Reader) -> None:
    book = book_of(reader, 2**40)
    list(book.read([3]))
    order = [segment for segment, _ in _first(book.read([0, 1, 2, 3]), 1)]
    assert order == [3]


def _first(items: Iterator[Any], count: int) -> list[Any]:
    return [next(items) for _ in range(count)]
