"""Places of a prompt in its documents: which count more as sources of copies, and what was copied from where."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

import longctx.reader as reader_module
from longctx import Document, Reader, cut
from longctx.backend.tokens import Tokens
from longctx.drafts import Budget, Draft, DraftSource, Verified
from longctx.generated import Stats
from longctx.origins import Origins
from longctx.types import Scores, SelectedSpan, Selection

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
    found = Origins(tokens, [DOCUMENT], chosen.spans, 3).votes(len(prompt))
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
    assert Origins(tokens, [DOCUMENT], chosen.spans, 0).votes(len(tokens.plain(chosen.text))) is None


def prepending() -> Any:
    """A tokenizer that puts a mark in front of whatever it is given, as those of Llama 2 and Mistral do."""
    whole = Tokenizer(models.BPE({"▁": 0, "a": 1, "b": 2, "<unk>": 3}, [], unk_token="<unk>"))
    whole.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="<unk>")


def test_places_in_a_long_text_are_those_of_the_tokens_of_its_prompt() -> None:
    tokens = Tokens(prepending())
    text = "ab " * 40_000 + "ba"
    document = Document.from_text(text, id="long")
    spans = (SelectedSpan("long", 0, len(text), None, 1.0),)
    prompt = tokens.plain(text)
    assert len(tokens.encode(document).token_ids) > len(prompt) == len(tokens.encode(document, at_once=True).token_ids)
    place = len(prompt) - 3  # the last word, its mark and its two letters
    (piece,) = Origins(tokens, [document], spans, 0).copies([(0, place, 3)])
    assert (text[piece.start : piece.end].strip(), piece.tokens) == ("ba", 3)


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


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_was_copied_stands_where_it_is_said_to_stand(data: st.DataObject) -> None:
    tokens = Tokens(tiny.tokenizer())
    other = Document.from_text("\r\nzwölf Boxkämpfer 🥊 jagen Viktor.\n\n" + TEXT.upper(), id="b")
    texts = {"a": TEXT, "b": other.text}
    drawn = data.draw(
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 100), st.integers(5, 40)), min_size=1, max_size=4)
    )
    spans = [SelectedSpan(name, at, min(at + size, len(texts[name])), None, 1.0) for name, at, size in drawn]
    spans = [span for span in spans if texts[span.document_id][span.start : span.end].strip()]
    assume(spans)
    joined = cut.joined([DOCUMENT, other], spans)
    encoded = tokens.encode(Document.from_text(joined))
    count, first = len(encoded.token_ids), 7
    place, length = data.draw(st.integers(0, count + 12)), data.draw(st.integers(1, 30))
    found = Origins(tokens, [DOCUMENT, other], spans, first).copies([(50, place, length)])
    ends = [*encoded.token_starts[1:].tolist(), len(joined)]
    for copy in found:
        assert texts[copy.document_id][copy.start : copy.end] != ""
        # by the slow way: the characters of those tokens in the joined text
        at = copy.new - 50 + place - first
        said = joined[encoded.token_starts[at] : ends[at + copy.tokens - 1]]
        assert said.startswith(texts[copy.document_id][copy.start : copy.end])
    told = {copy.new - 50 + place - first + i for copy in found for i in range(copy.tokens)}
    asked = set(range(max(0, place - first), min(count, place - first + length)))
    separators = {at for at in asked - told if not joined[encoded.token_starts[at] : ends[at]].strip()}
    assert told <= asked and asked - told == separators and sum(copy.tokens for copy in found) == len(told)


def test_an_answer_says_what_it_copied_and_from_where(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(tiny.model(), tiny.tokenizer(), encoder=None, calibration=None)
    real, first = reader_module.answer, len(reader._frame.before)
    copied = ((0, first + 2, 4), (9, 0, first))  # four tokens of the text, and the whole frame
    monkeypatch.setattr(
        reader_module, "answer", lambda *given: replace(real(*given), stats=Stats(copied=copied)), raising=True
    )
    answer = reader.ask(DOCUMENT, "where is the code?", max_new_tokens=2)
    (copy,) = next(step for step in answer.trace if step.name == "decode").facts["copies"]
    starts = Tokens(reader.tokenizer).encode(DOCUMENT).token_starts
    assert copy == {"document_id": "a", "start": starts[2], "end": starts[6], "new": 0, "tokens": 4}
    assert json.loads(json.dumps(answer.as_dict()))["trace"][-2]["facts"]["copies"] == [copy]


def test_spans_of_nothing_but_empty_lines_are_asked_about_as_any() -> None:
    class Blank:
        baseline = True

        def score(self, question: str, corpus: Any, budget_tokens: int) -> Scores:
            blank = [not corpus.text(unit).strip() for unit in range(len(corpus.units))]
            return Scores(np.where(blank, 1.0, -np.inf).astype(np.float32))

    reader = Reader(tiny.model(), tiny.tokenizer(), encoder=None, calibration=None)
    text = "the code is in the letter." + "\n" * 3000 + "they would answer there."
    answer = reader.ask(Document.from_text(text), "where?", budget_tokens=100, selector=Blank(), max_new_tokens=2)
    assert answer.selection.spans and answer.selection.text == "" and answer.usage["new_tokens"] > 0


def test_tokens_inside_one_character_copy_nothing() -> None:
    tokens = Tokens(tiny.tokenizer())
    document = Document.from_text("a😀b", id="a")
    encoded = tokens.encode(document)
    inside = [at for at, start in enumerate(encoded.token_starts) if list(encoded.token_starts).count(start) > 1]
    assert len(inside) > 2
    spans = [SelectedSpan("a", 0, 3, None, 1.0)]
    assert Origins(tokens, [document], spans, 0).copies([(0, inside[0], 1)]) == ()


def test_a_text_is_not_tokenised_again_where_nobody_votes_and_nothing_was_copied() -> None:
    tokens = Tokens(tiny.tokenizer())
    chosen = selection((0, 38, 2.0), (69, 107, 2.0))
    read: list[Document] = []
    encode = tokens.encode
    tokens.encode = lambda document, **how: read.append(document) or encode(document, **how)  # type: ignore[method-assign, func-returns-value]
    origins = Origins(tokens, [DOCUMENT], chosen.spans, 3)
    assert origins.votes(40) is None and origins.copies(()) == () and read == []
    assert origins.copies([(0, 3, 2)]) != () and len(read) == 1
