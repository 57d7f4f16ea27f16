"""What is known of the latest question: a narrower inquiry gets what its own pass would have given, others nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from longctx import Reader
from longctx.compiled import CompiledDocument
from longctx.latest import Latest
from longctx.types import Document, Inquiry, Reading

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = "".join(
    f"Door {n} of the mill opens with key {n * 7 % 31}. Rain fell on the yard all week.\n\n" for n in range(24)
)
QUESTION = "Which key opens door 7?"
HEADS = ((0, 1), (1, 3), (1, 0), (0, 2))
NARROW: list[dict[str, Any]] = [
    {"likelihood": True},
    {"next_token": True},
    {"likelihood": True, "next_token": True},
    {"heads": ((1, 0),)},
    {"heads": ((0, 2), (0, 1), (1, 3))},
    {"heads": HEADS, "likelihood": True},
]
OTHER: list[dict[str, Any]] = [
    {"heads": ((0, 0),)},
    {"heads": None},
    {"heads": HEADS, "through_cue": True},
    {"heads": HEADS, "keep_rows": True},
]


@pytest.fixture
def book() -> CompiledDocument:
    model = tiny.model("qwen3", num_hidden_layers=2)
    reader = Reader(model, tiny.tokenizer("system"), encoder=None, calibration=None, segment_tokens=64)
    return reader.compile(Document.from_text(TEXT))


def asked(book: CompiledDocument, question: str, segments: Any = None, **wanted: Any) -> dict[int, Reading]:
    everything = range(len(book.segments)) if segments is None else segments
    found = list(book.ask(everything, book.probe.inquiry(question, **wanted)))
    assert sorted(segment for segment, _ in found) == sorted(everything)
    return dict(found)


def same(found: Reading, expected: Reading) -> None:
    np.testing.assert_allclose(found.attention, expected.attention, atol=1e-5)
    np.testing.assert_allclose(found.likelihood, expected.likelihood, atol=1e-4)
    assert (found.next_token is None) == (expected.next_token is None)
    if found.next_token is not None and expected.next_token is not None:
        np.testing.assert_allclose(found.next_token, expected.next_token, atol=1e-4)


@pytest.mark.parametrize("wanted", NARROW)
def test_a_wider_inquiry_answers_narrower_ones_without_a_pass(book: CompiledDocument, wanted: dict[str, Any]) -> None:
    expected = asked(book, QUESTION, **wanted)
    asked(book, "Something else?")
    asked(book, QUESTION, heads=HEADS, likelihood=True, next_token=True)
    before = book.spent()
    found = asked(book, QUESTION, **wanted)
    assert book.spent() == before
    for segment, reading in found.items():
        same(reading, expected[segment])
    asked(book, QUESTION, heads=HEADS, likelihood=True, next_token=True)  # it is known still
    assert book.spent() == before


@pytest.mark.parametrize("wanted", OTHER)
def test_what_the_wider_inquiry_did_not_ask_is_asked(book: CompiledDocument, wanted: dict[str, Any]) -> None:
    expected = asked(book, QUESTION, **wanted)
    asked(book, QUESTION, heads=HEADS, likelihood=True, next_token=True)
    before = book.spent()
    found = asked(book, QUESTION, **wanted)
    assert book.spent() > before
    for segment, reading in found.items():
        same(reading, expected[segment])
        assert (reading.rows is None) == (not wanted.get("keep_rows"))


@pytest.mark.parametrize("wanted", NARROW[:2])
def test_another_question_gets_nothing_of_the_latest_one(book: CompiledDocument, wanted: dict[str, Any]) -> None:
    asked(book, QUESTION, heads=HEADS, likelihood=True, next_token=True)
    before = book.spent()
    asked(book, QUESTION.replace("7", "8"), **wanted)
    assert book.spent() > before


def test_segments_that_the_wider_inquiry_did_not_reach_are_asked_once(book: CompiledDocument) -> None:
    wide = {"heads": HEADS, "likelihood": True}
    expected = asked(book, QUESTION, likelihood=True)
    one = book.spent()
    asked(book, QUESTION, likelihood=True)
    assert book.spent() == one  # known from the call before
    cost = len(book.probe.inquiry(QUESTION, likelihood=True).ids)
    asked(book, "Something else?")
    asked(book, QUESTION, segments=[2, 0], **wide)
    before = book.spent()
    found = asked(book, QUESTION, likelihood=True)
    assert book.spent() - before == (len(book.segments) - 2) * cost
    for segment, reading in found.items():
        same(reading, expected[segment])
    asked(book, QUESTION, likelihood=True)
    assert book.spent() - before == (len(book.segments) - 2) * cost


READINGS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=40)


@given(READINGS, st.integers(0, 400))
def test_no_more_is_known_than_the_limit_allows(readings: list[tuple[int, int]], limit: int) -> None:
    latest, inquiry = Latest(limit), Inquiry((1, 2), (0, 2), likelihood=True)
    latest.of(inquiry, ())
    sizes: dict[int, int] = {}
    for segment, tokens in readings:
        reading = Reading(np.zeros((0, 3), np.float32), np.zeros(tokens, np.float32))
        latest.keep(replace(inquiry, next_token=True), segment, reading)  # of another inquiry: dropped
        latest.keep(inquiry, segment, reading)
        if segment not in sizes and sum(sizes.values()) + 4 * tokens <= limit:
            sizes[segment] = 4 * tokens
    known = latest.of(inquiry, ())
    assert {segment: reading.likelihood.nbytes for segment, reading in known.items()} == sizes
