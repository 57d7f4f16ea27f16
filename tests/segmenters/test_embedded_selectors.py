"""What ``auto`` finds with the embedded model, spends and lacks, and the needles of the other selectors that read.

They stand together because a file is one process's: the text is read once. What a selector computes of signals that
are given stands in its own file; the needle of a new one that reads goes here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from needles import NEEDLES

from longctx.errors import ModelError
from longctx.segmenters.selectors.auto import Auto
from longctx.segmenters.selectors.xl3m import XL3M


@pytest.mark.parametrize("question", NEEDLES)
def test_a_planted_needle_survives(question: str, haystack: Any, embedded_reader: Any) -> None:
    selection = embedded_reader.select(haystack, question, budget_tokens=200, selector="auto")
    assert NEEDLES[question] in selection.text and selection.relevant


def test_a_needle_that_shares_no_word_with_its_question_is_found_by_the_model(haystack: Any) -> None:
    question = "How does one get into the storehouse?"  # "The access code for the Dray depot is 4711."
    assert not haystack.lexical(question).any()
    values = Auto(neighbours=0.0).score(question, haystack, 200).values
    (needle,) = [i for i in range(len(haystack.units)) if "4711" in haystack.text(i)]
    assert (values > values[needle]).sum() < 0.15 * len(values)


def test_what_seems_unrelated_is_kept_as_a_guess_and_refuse_false_believes_it(
    haystack: Any, embedded_reader: Any
) -> None:
    question = "Is there a zebra that plays the xylophone?"
    doubted = embedded_reader.select(haystack, question, budget_tokens=200)
    believed = embedded_reader.select(haystack, question, budget_tokens=200, selector="auto:refuse=false")
    assert not doubted.relevant and believed.relevant
    assert doubted.spans == believed.spans != () and doubted.as_read == () != believed.as_read
    assert any("guess" in warning for warning in {*doubted.warnings} - {*believed.warnings})


def test_weak_spans_stand_below_the_floor(haystack: Any, embedded_reader: Any) -> None:
    question = "What is the access code for the Dray depot?"
    selection = embedded_reader.select(haystack, question, budget_tokens=1000)
    best = selection.as_read[-1]
    assert 0 < len(selection.as_read) < len(selection.spans) and NEEDLES[question] in haystack_text(haystack, best)
    assert all((span.score >= 0.2 * best.score) == (span in selection.as_read) for span in selection.spans)


def haystack_text(book: Any, span: Any) -> str:
    return str(book.documents[0].text[span.start : span.end])


def test_only_segments_that_could_enter_the_budget_and_a_sample_are_read(haystack: Any) -> None:
    question = "What is the access code for the Dray depot?"
    total = len(haystack.segments)
    few = Auto(reach=1.0, least=0, sample=2).score(question, haystack, 100)
    many = Auto(reach=100.0).score(question, haystack, 10_000)
    assert few.facts["segments_read"] <= 4 < total == many.facts["segments_read"]
    least = Auto(reach=1.0, least=haystack.tokens, sample=2).score(question, haystack, 100)
    assert least.facts["segments_read"] == total, "however small the budget"


def test_without_the_model_no_pass_is_made(haystack: Any) -> None:
    before = haystack.spent()
    scores = Auto(model=False).score("What is the access code for the Dray depot?", haystack, 100)
    assert haystack.spent() == before and scores.tokens_read == 0
    assert scores.facts["signals"] == ["words"]
    assert "4711" in haystack.text(int(scores.values.argmax()))


def test_a_model_whose_layers_cannot_be_read_is_left_out_with_a_warning(
    haystack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Any:
        raise ModelError("the model has linear layers.")

    monkeypatch.setattr(haystack, "_probe", refuse)
    scores = Auto().score("What is the access code for the Dray depot?", haystack, 100)
    assert any("linear layers" in warning for warning in scores.warnings)
    assert np.isfinite(scores.values).all() and scores.facts["signals"] == ["words"]


def test_signals_that_are_no_numbers_are_left_out_with_a_warning(
    haystack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = haystack.ask

    def overflowing(segments: Any, inquiry: Any) -> Any:
        for number, (segment, reading) in enumerate(real(segments, inquiry)):
            likelihood = reading.likelihood * np.nan if number == 1 else reading.likelihood
            yield segment, replace(reading, likelihood=likelihood)

    monkeypatch.setattr(haystack, "ask", overflowing)
    scores = Auto().score("What is the access code for the Dray depot?", haystack, 100)
    assert any("not finite" in warning for warning in scores.warnings) and "gain" not in scores.facts
    assert np.isfinite(scores.values).all() and scores.facts["signals"] == ["words"]


def test_the_limit_is_a_multiple_of_the_budget_and_never_below_the_least() -> None:
    method = Auto(reach=3.0, least=4096)
    assert [method.limit(budget) for budget in (100, 1365, 1366, 2048)] == [4096, 4096, 4098, 6144]
    assert Auto(reach=0.5, least=0).limit(100) == 50


@pytest.mark.parametrize("question", NEEDLES)
def test_a_planted_needle_survives_the_calibrated_heads(question: str, haystack: Any, embedded_reader: Any) -> None:
    selection = embedded_reader.select(haystack, question, budget_tokens=200, selector="infiniretri")
    assert NEEDLES[question] in selection.text and selection.dropped_tokens > 3000


@pytest.mark.parametrize("question", NEEDLES)
def test_a_planted_needle_survives_by_the_likelihood_of_its_question(question: str, haystack: Any) -> None:
    scores = XL3M().score(question, haystack, 600)
    first = int(scores.values.argmax())
    (segment,) = [s for s in haystack.segments if s[0] <= first < s[1]]
    assert NEEDLES[question] in "".join(haystack.text(i) for i in range(*segment)) and scores.relevant
