"""Which places of a prompt count more as sources of copies: those of the spans the selector liked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny

from longctx import Document, Reader, cut
from longctx.backend.tokens import Tokens
from longctx.drafts import Budget, Draft, DraftSource, Verified
from longctx.types import SelectedSpan, Selection
from longctx.votes import votes

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = "the code of the room is in the letter. a winter report was not kept. they would answer the question there. "
DOCUMENT = Document.from_text(TEXT, id="a")


def selection(*spans: tuple[int, int, float]) -> Selection:
    made = tuple(SelectedSpan("a", start, end, None, score) for start, end, score in spans)
    return Selection(made, cut.joined([DOCUMENT], made), 0, 0, 0, 0.0)


def test_the_tokens_of_a_span_count_by_its_score_and_all_others_one() -> None:
    tokens = Tokens(tiny.tokenizer())
    chosen = selection((0, 38, -3.0), (69, 107, 5.0))
    prompt = [4, 5, 6, *tokens.plain(chosen.text), 7, 8]
    found = votes(tokens, [DOCUMENT], chosen.spans, prompt, 3)
    assert found is not None and len(found) == len(prompt)
    low, high = np.exp(-1), np.exp(1)
    edge = 3 + len(tokens.plain(TEXT[:38]))
    assert found[:3].tolist() == [1, 1, 1] and found[-2:].tolist() == [1, 1]
    np.testing.assert_allclose(found[3:edge], low, rtol=1e-6)
    np.testing.assert_allclose(found[edge + 2 : -2], high, rtol=1e-6)
    assert tokens.decode(np.asarray(prompt)[found > 1].tolist()).strip() == TEXT[69:107].strip()


@pytest.mark.parametrize("scores", [(2.0, 2.0), (2.0, float("inf")), (2.0,)])
def test_scores_that_say_nothing_make_no_difference(scores: tuple[float, ...]) -> None:
    tokens = Tokens(tiny.tokenizer())
    chosen = selection(*((40 * i, 40 * i + 30, score) for i, score in enumerate(scores)))
    assert votes(tokens, [DOCUMENT], chosen.spans, tokens.plain(chosen.text), 0) is None


def test_a_reader_tells_its_drafters_which_spans_were_liked() -> None:
    told: list[DraftSource] = []

    class Listening:
        needs = 0

        def begin(self, source: DraftSource) -> Listening:
            told.append(source)
            return self

        def propose(self, budget: Budget) -> Draft:
            return Draft.empty()

        def observe(self, verified: Verified) -> None: ...

    reader = Reader(tiny.model(), tiny.tokenizer(), encoder=None, calibration=None, splitter="sentences:max_tokens=20")
    text = " ".join(
        f"the {word} letter number was kept in a room for the winter." for word in "code street river his".split()
    )
    asked: dict[str, Any] = {"budget_tokens": 45, "selector": "bm25", "max_new_tokens": 3}
    answer = reader.ask(Document.from_text(text), "where is the river?", drafters=[Listening()], **asked)
    plain = reader.ask(Document.from_text(text), "where is the river?", drafters=[], **asked)
    assert answer.text == plain.text
    (source,) = told
    spans = answer.selection.spans
    assert source.folds is not None and len({span.score for span in spans}) > 1, spans
    assert source.weights is not None and len(source.weights) == len(source.prompt)
    best = max(spans, key=lambda span: span.score)
    liked = reader.tokenizer.decode(source.prompt[source.weights > 1].tolist())
    assert "river" in text[best.start : best.end] and "river" in liked and "street" not in liked
