"""Questions to a Reader whose text is read through a bounded cache."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from longctx import Document, Reader
from longctx.backend import compressing
from longctx.errors import BadOption, DoesNotFit, ModelError, UnknownMethod

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = "the river of the north is in the street that was there before the winter. " * 30
DOC = Document.from_text(TEXT)
QUESTION = "Where is the river?"


def reader(**changes: Any) -> Reader:
    return Reader(tiny.model("llama", **changes), tiny.tokenizer("system"), encoder=None, calibration=None)


def test_full_says_what_plain_attention_says_and_squeezed_says_what_it_left_out() -> None:
    asked = reader()
    plain = asked.ask(DOC, QUESTION, selector="all", max_new_tokens=16)
    full = asked.ask(DOC, QUESTION, selector="all", max_new_tokens=16, kv="full")
    assert (full.text, full.guarantee, full.warnings) == (plain.text, "exact", ())
    bounded = asked.ask(DOC, QUESTION, selector="all", max_new_tokens=16, kv="squeezed:budget=200")
    assert bounded.guarantee == "approximate" and bounded.selection.dropped_tokens == 0
    facts = next(step.facts for step in bounded.trace if step.name == "decode")["kv"]
    assert 132 < facts["read_keys"] <= 200 and 0 < facts["unread_share"] < facts["unread_bound"] <= 1
    assert facts["context_tokens"] + 30 > bounded.usage["prompt_tokens"] > facts["context_tokens"]


def test_a_selection_can_be_bounded_too_and_a_stream_is_the_same() -> None:
    asked = reader()
    answer = asked.ask(DOC, QUESTION, selector="bm25", budget_tokens=300, max_new_tokens=8, kv="squeezed:budget=150")
    assert answer.guarantee == "approximate" and answer.selection.dropped_tokens
    events = list(
        asked.stream(DOC, QUESTION, selector="bm25", budget_tokens=300, max_new_tokens=8, kv="squeezed:budget=150")
    )
    assert events[-1].answer is not None and events[-1].answer.text == answer.text
    assert "".join(event.text for event in events if event.kind == "token") == answer.text


def test_the_text_is_read_once_for_all_questions_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = compressing.read
    monkeypatch.setattr(compressing, "read", lambda *args: read.append(1) or original(*args))
    asked = reader()
    first = asked.ask(DOC, QUESTION, selector="all", max_new_tokens=8, kv="squeezed:budget=200")
    asked.ask(DOC, "Where is the street?", selector="all", max_new_tokens=8, kv="squeezed:budget=200")
    again = asked.ask(DOC, QUESTION, selector="all", max_new_tokens=8, kv="squeezed:budget=200")
    assert len(read) == 1 and again.text == first.text
    asked.ask(DOC, QUESTION, selector="all", max_new_tokens=8, kv="squeezed:budget=199")
    assert len(read) == 2


def test_the_text_is_read_again_when_the_weights_have_changed() -> None:
    asked = reader()
    options: dict[str, Any] = {"selector": "all", "max_new_tokens": 8}
    before = asked.ask(DOC, QUESTION, kv="full", **options)
    with torch.no_grad():
        asked.model.lm_head.weight.mul_(torch.linspace(0.2, 2.0, tiny.VOCAB)[:, None])
    found = asked.ask(DOC, QUESTION, kv="full", **options)
    assert before.text != found.text == asked.ask(DOC, QUESTION, **options).text


def test_a_text_beyond_the_window_needs_a_policy_that_bounds_the_reading_too() -> None:
    asked = Reader(
        tiny.model("llama", max_position_embeddings=600),
        tiny.tokenizer("system"),
        encoder=None,
        calibration=None,
        segment_tokens=100,
    )
    for kv in (None, "squeezed:budget=200", "snapkv:budget=200", "lm_infinite:budget=300,ceiling=2000"):
        with pytest.raises(DoesNotFit, match="kv='longheads'"):
            asked.ask(DOC, QUESTION, selector="all", max_new_tokens=8, kv=kv)
    for kv in ("longheads:budget=300,window=32", "lm_infinite:budget=300", "lm_infinite:budget=650,ceiling=300"):
        answer = asked.ask(DOC, QUESTION, selector="all", max_new_tokens=8, kv=kv)
        assert answer.usage["prompt_tokens"] > 600 and answer.guarantee == "approximate"
    # the budget holds the text, though not the question too: nothing stands nearer than it does
    text = answer.usage["prompt_tokens"] - 1
    with pytest.raises(DoesNotFit, match="window is 600"):
        asked.ask(DOC, QUESTION, selector="all", max_new_tokens=8, kv=f"lm_infinite:budget={text},ceiling=300")


def test_a_share_of_a_text_that_is_too_short_for_it_is_plain_attention_with_a_warning() -> None:
    asked = reader()
    plain = asked.ask(DOC, QUESTION, selector="all", max_new_tokens=16)
    answer = asked.ask(DOC, QUESTION, selector="all", max_new_tokens=16, kv="squeezed:keep=0.125")
    assert (answer.text, answer.guarantee) == (plain.text, "exact")
    assert len(answer.warnings) == 1 and "keep=0.125 is a budget of " in answer.warnings[0]
    assert "not above the 132" in answer.warnings[0] and "worth it from 1,057 tokens on" in answer.warnings[0]
    enough = asked.ask(DOC, QUESTION, selector="all", max_new_tokens=16, kv="squeezed:keep=0.5")
    assert enough.guarantee == "approximate" and not enough.warnings


def test_beyond_the_window_a_share_that_is_no_budget_is_refused_with_its_numbers() -> None:
    asked = Reader(
        tiny.model("llama", max_position_embeddings=600),
        tiny.tokenizer("system"),
        encoder=None,
        calibration=None,
        segment_tokens=100,
    )
    with pytest.raises(
        DoesNotFit, match=r"window is 600\. longheads: keep=0\.1 is a budget of .* worth it from 7,671 "
    ):
        asked.ask(DOC, QUESTION, selector="all", max_new_tokens=8, kv="longheads:keep=0.1")


def test_layers_that_keep_no_keys_are_left_alone_where_the_question_allows_it() -> None:
    asked = Reader(tiny.hybrid(), tiny.tokenizer("system"), encoder=None, calibration=None)
    options: dict[str, Any] = {"selector": "all", "max_new_tokens": 8}
    plain = asked.ask(DOC, QUESTION, **options)
    full = asked.ask(DOC, QUESTION, **options, kv="full", allow_partial=True)
    assert full.text == plain.text and "2 (linear_attention)" in full.warnings[0]
    options["kv"] = "squeezed:budget=200"
    bounded = asked.ask(DOC, QUESTION, **options, allow_partial=True)
    facts = next(step.facts for step in bounded.trace if step.name == "decode")["kv"]
    assert 132 < facts["read_keys"] <= 200 and bounded.guarantee == "approximate"
    assert "left as they are: 0 (linear_attention), 1" in bounded.warnings[0]
    assert list(asked.stream(DOC, QUESTION, **options, allow_partial=True))[-1].text == bounded.text
    for ask in (asked.ask, lambda *words, **given: list(asked.stream(*words, **given))):
        with pytest.raises(ModelError, match=r"0 \(linear_attention\).* allow_partial=True .*--kv-partial"):
            ask(DOC, QUESTION, **options)  # what was kept of the same text is not found here
    with pytest.raises(ModelError, match="do not bound the reading"):
        asked.ask(DOC, QUESTION, selector="all", kv="lm_infinite:budget=200", allow_partial=True)


def test_policies_that_are_none_are_refused_before_anything_is_read() -> None:
    with pytest.raises(UnknownMethod, match="no kv named 'nonsense'"):
        reader().ask(DOC, QUESTION, kv="nonsense")
    with pytest.raises(BadOption, match="always read"):
        reader().ask(DOC, QUESTION, selector="all", kv="squeezed:budget=100")


def test_drafters_asked_for_by_name_are_told_that_a_bounded_cache_verifies_none() -> None:
    asked = reader()
    options: dict[str, Any] = {"selector": "all", "max_new_tokens": 8, "kv": "squeezed:budget=200"}
    plain = asked.ask(DOC, QUESTION, **options)
    drafted = asked.ask(DOC, QUESTION, drafters=["ngram"], **options)
    assert not plain.warnings and drafted.text == plain.text
    assert any("without drafts" in warning for warning in drafted.warnings)


@pytest.mark.parametrize("at, crosses", [(0, True), (-200, False), (400, False)], ids=["between", "below", "beyond"])
def test_a_context_that_was_rotated_as_a_shorter_text_is_no_exact_answer(at: int, crosses: bool) -> None:
    """longrope has other frequencies beyond a length: one between the context's end and the answer's changes them."""
    plain = reader().ask(DOC, QUESTION, selector="all", max_new_tokens=8, kv="full")
    context = next(step.facts for step in plain.trace if step.name == "decode")["kv"]["context_tokens"]
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "factor": 4.0}
    rope |= {"long_factor": [float(2 + i) for i in range(8)], "original_max_position_embeddings": context + at}
    model = tiny.model("phi3", rope_parameters=rope, original_max_position_embeddings=context + at)
    asked = Reader(model, tiny.tokenizer("system"), encoder=None, calibration=None)
    answer = asked.ask(DOC, QUESTION, selector="all", max_new_tokens=8, kv="full")
    said = [warning for warning in answer.warnings if "rotates long texts otherwise" in warning]
    assert answer.guarantee == ("approximate" if crosses else "exact") and bool(said) == crosses
    assert not crosses or f"the {context} tokens in the cache" in said[0]
