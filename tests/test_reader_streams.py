"""The promises of the public face about streams: they show all that is said, and stop when nobody listens."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import tiny
import torch
from readers import DOCUMENT, QUESTION, counted, reader_of

import longctx.reader as reader_module
from longctx import Document, Reader
from longctx.errors import EmptyInput, UnknownMethod
from longctx.types import Event

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reader() -> Reader:
    return reader_of()


def test_an_answer_that_the_model_was_not_asked_for_is_streamed_too(reader: Reader) -> None:
    """Whoever shows token events only used to see nothing at all."""
    events = list(reader.stream(DOCUMENT, "zebra xylophone?", budget_tokens=100, selector="bm25"))
    said = "".join(event.text for event in events if event.kind == "token")
    assert said == events[-1].text == reader_module.NOTHING


def test_streamed_text_is_the_answer_also_where_characters_stay_unfinished() -> None:
    """Tokens that are parts of characters used to be held back for good when the answer ended in the middle of one."""
    reader = reader_of()
    half = counted(reader, "é") and reader._tokens.plain("é")[0]
    with torch.no_grad():
        reader.model.lm_head.weight.zero_()
    bias = torch.zeros(tiny.VOCAB)
    bias[half] = 50.0
    reader.model.lm_head.register_forward_hook(lambda module, args, out: out + bias)
    events = list(reader.stream(DOCUMENT, QUESTION, budget_tokens=100, max_new_tokens=4, selector="head"))
    said = "".join(event.text for event in events if event.kind == "token")
    assert said.strip() == events[-1].text != ""


# --- streams that are not listened to ------------------------------------------------------------------------------


def close_at(reader: Reader, kind: str, **options: Any) -> int:
    """Closes a stream at the first event of ``kind``; the passes the model made after that."""
    passes: list[int] = []
    handle = reader.model.register_forward_hook(lambda *_: passes.append(1))
    stream = reader.stream(DOCUMENT, QUESTION, budget_tokens=120, **options)
    event: Event | None = next(stream)
    while event is not None and event.kind != kind:
        event = next(stream, None)
    before = len(passes)
    stream.close()  # type: ignore[attr-defined]
    after = len(passes)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("longctx")]
    assert len(passes) == after, "work went on after the stream was closed"
    handle.remove()
    return after - before


def test_a_stream_that_is_closed_stops_its_work() -> None:
    reader = reader_of()
    implementation = reader.model.config._attn_implementation
    assert close_at(reader, "progress", selector="infiniretri") <= 2
    assert close_at(reader, "token", selector="head", max_new_tokens=400) < 100
    assert reader.model.config._attn_implementation == implementation
    assert reader.ask(DOCUMENT, QUESTION, budget_tokens=100, max_new_tokens=2).text is not None


def test_a_stream_of_unfinished_characters_stops_when_it_is_closed() -> None:
    """No token event comes of them, and without one nobody noticed that the listener had gone."""
    reader = reader_of()
    half = reader._tokens.plain("é")[0]
    with torch.no_grad():
        reader.model.lm_head.weight.zero_()
    bias = torch.zeros(tiny.VOCAB)
    bias[half] = 50.0
    steps: list[int] = []
    reached = threading.Event()

    def push(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 5:
            reached.set()
        return out + bias

    reader.model.lm_head.register_forward_hook(push)
    stream = reader.stream(DOCUMENT, QUESTION, budget_tokens=100, max_new_tokens=700, selector="head")
    for event in stream:
        if event.kind == "progress" and event.text == "prompt":
            break
    reached.wait(20)
    stream.close()  # type: ignore[attr-defined]
    assert len(steps) < 600


def test_an_error_of_the_work_is_raised_where_the_stream_is_read(reader: Reader) -> None:
    with pytest.raises(UnknownMethod):
        list(reader.stream(DOCUMENT, QUESTION, budget_tokens=50, selector="magic"))
    with pytest.raises(EmptyInput):
        next(reader.stream(Document.from_text(" "), QUESTION, budget_tokens=50))


def test_a_stream_that_is_never_read_does_no_work(reader: Reader) -> None:
    passes: list[int] = []
    handle = reader.model.register_forward_hook(lambda *_: passes.append(1))
    stream = reader.stream(DOCUMENT, QUESTION, budget_tokens=50, selector="head")
    del stream
    handle.remove()
    assert passes == []
