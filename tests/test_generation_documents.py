"""What a generation copies from: documents given to it, indexed once, and where in them its copies stand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generation import PROMPT, STEADILY, TOKENIZER, plain
from transformers import AutoModelForCausalLM, AutoTokenizer

import longctx
from longctx import Document, suffixes
from longctx import generation as module
from longctx.copied import Texts, copies_of
from longctx.errors import BadOption, EmptyInput
from longctx.generated import Stats
from longctx.types import EncodedDocument

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_document_is_what_the_answer_copies_from(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    expected = plain(model)
    document = Document.from_text("the answer")
    tokens = expected[0, PROMPT.shape[1] :].numpy()
    # no text of a random model comes back as its tokens: one character each, behind a document of three
    before = EncodedDocument(Document.from_text("...", "before"), np.arange(1, 4, dtype=np.int32), np.arange(3))
    said = EncodedDocument(Document.from_text("x" * len(tokens), "said"), tokens, np.arange(len(tokens)))
    index = suffixes.SuffixIndex(np.concatenate((before.token_ids, tokens)))
    monkeypatch.setattr(module, "copies_of", lambda *_: Texts(index, (before, said)))
    out = longctx.generate(model, TOKENIZER, PROMPT, drafters=["document"], document=document, **STEADILY)
    monkeypatch.undo()
    without = longctx.generate(model, TOKENIZER, PROMPT, drafters=["document"], **STEADILY)
    assert torch.equal(out.sequences, expected) and torch.equal(without.sequences, expected)
    assert out.stats.accepted > without.stats.accepted and out.stats.copied[-1][1] < len(tokens)
    new = expected[0, PROMPT.shape[1] :].tolist()
    assert sum(copy.tokens for copy in out.stats.copies) > 10
    for copy in out.stats.copies:
        assert copy.document_id == "said" and copy.end - copy.start == copy.tokens
        assert new[copy.new : copy.new + copy.tokens] == tokens[copy.start : copy.end].tolist()
    assert without.stats.copies == (), "the prompt is no document"
    told = out.as_dict()["stats"]
    assert told["copies"][0] == {
        "document_id": "said", "start": out.stats.copies[0].start, "end": out.stats.copies[0].end,
        "new": out.stats.copies[0].new, "tokens": out.stats.copies[0].tokens,
    }  # fmt: skip


def test_what_is_no_document_is_refused() -> None:
    with pytest.raises(EmptyInput, match="is empty"):
        longctx.generate(tiny.model(), TOKENIZER, PROMPT, document=Document.from_text(""))
    with pytest.raises(BadOption, match=r"not str\. longctx\.read"):
        longctx.generate(tiny.model(), TOKENIZER, PROMPT, document="a text")  # type: ignore[arg-type]
    with pytest.raises(BadOption, match="is a text"):
        longctx.generate(tiny.model(), TOKENIZER, "a text")
    with pytest.raises(BadOption, match="tokenizer="):
        longctx.speculative(document=Document.from_text("the answer"))
    with pytest.raises(BadOption, match="not str"):  # and nothing of a tokenizer, which would not help
        longctx.speculative(document="a text")  # type: ignore[arg-type]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), min_size=1, max_size=4))
def test_copies_are_the_characters_of_their_tokens_in_each_document(runs: list[tuple[int, int]]) -> None:
    """Against the slow way: every token by itself, joined with its neighbour where both stand in one document."""
    texts = copies_of(
        [Document.from_text("zwölf 🥊 Boxer\njagen Viktor. " * 2, "a"), Document.from_text("the of", "b")], TOKENIZER
    )
    assert texts is not None
    each: list[tuple[str, int, int]] = []
    for encoded in texts.encoded:
        ends = [*encoded.token_starts[1:].tolist(), len(encoded.document.text)]
        each += [(encoded.document.id, a, b) for a, b in zip(encoded.token_starts.tolist(), ends, strict=True)]
    assert len(each) == len(texts.index) and len(each) > 30
    for place, count in runs:
        found = texts.located(Stats(copied=((7, place, count),))).copies
        asked = each[place : place + count]
        of = {name: [(a, b) for other, a, b in asked if other == name] for name in ("a", "b")}
        # some tokens inside one character, and not its last, are none of its characters
        assert [copy.document_id for copy in found] == [
            name for name, own in of.items() if own and own[0][0] < own[-1][1]
        ]
        for copy in found:
            own = of[copy.document_id]
            assert (copy.start, copy.end) == (own[0][0], own[-1][1]) and copy.tokens == len(own)
            assert each[place + copy.new - 7] == (copy.document_id, *own[0])


def test_several_documents_are_copied_from_as_one_compiled_from_them_is() -> None:
    both = [Document.from_text("the of and " * 30, id="a"), Document.from_text("with on " * 30, id="b")]
    reader = longctx.Reader(tiny.model(), TOKENIZER, encoder=None, calibration=None)
    book = reader.compile(both)
    listed, compiled = copies_of(both, TOKENIZER), copies_of(book, TOKENIZER)
    assert listed is not None and compiled is not None and compiled.index is book.copies
    assert listed.index.tokens.tolist() == compiled.index.tokens.tolist()
    seam = Stats(copied=((0, len(listed.encoded[0].token_ids) - 1, 2),))
    assert [copy.document_id for copy in listed.located(seam).copies] == ["a", "b"]
    assert listed.located(seam).copies == compiled.located(seam).copies
    out = longctx.generate(reader.model, TOKENIZER, PROMPT, document=both, **STEADILY)
    assert torch.equal(out.sequences, plain(reader.model))
    with pytest.raises(EmptyInput, match="'b' has no text"):
        longctx.speculative(document=[both[0], Document.from_text("", id="b")], tokenizer=TOKENIZER)


def test_a_document_is_indexed_once_for_all_rows_and_drafters(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    sort = suffixes._suffix_array
    monkeypatch.setattr(suffixes, "_suffix_array", lambda *given: (made.append(1), sort(*given))[1])
    options = STEADILY | {"document": Document.from_text("the of and " * 30), "max_new_tokens": 4}
    longctx.generate(tiny.model(), TOKENIZER, PROMPT.repeat(3, 1), drafters=["document", "rasd"], **options)
    assert len(made) == 2, "once as it is, and once with folded words"


def test_a_compiled_document_is_indexed_once_for_all_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    sort = suffixes._suffix_array
    monkeypatch.setattr(suffixes, "_suffix_array", lambda *given: (made.append(len(given[0])), sort(*given))[1])
    reader = longctx.Reader(tiny.model(), TOKENIZER, encoder=None, calibration=None)
    both = [Document.from_text("the of and " * 30, id="a"), Document.from_text("with on " * 30, id="b")]
    book = reader.compile(both)
    for _ in range(2):
        options = STEADILY | {"document": book, "max_new_tokens": 4}
        longctx.generate(reader.model, TOKENIZER, PROMPT, drafters=["document"], **options)
    assert made in ([book.tokens], [book.tokens] * 2), "once as it is, and once with folded words where they are wanted"
    fresh = suffixes.SuffixIndex(np.concatenate([encoded.token_ids for encoded in book.encoded]))
    context = fresh.tokens[5:40].tolist()
    assert book.copies.matches(context, 50) == fresh.matches(context, 50)


def test_the_embedded_model_repeats_a_text_in_a_fraction_of_the_passes(embedded_folder: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(embedded_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder)
    text = "The harbour of Port Ellis was dredged in 1931 by the brothers Hugo and Emil Lindqvist, hired twice."
    turn = [{"role": "user", "content": f"{text}\n\nRepeat this text word for word."}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected = model.generate(prompt, do_sample=False, max_new_tokens=32)
    out = longctx.generate(model, tokenizer, prompt, max_new_tokens=32, controller="fixed")
    assert torch.equal(out.sequences, expected)
    assert out.stats.tokens_per_round > 2 and out.guarantee == "exact"
    documents = [Document.from_text("Nobody hired them again.", "other"), Document.from_text(text, "port")]
    out = longctx.generate(model, tokenizer, prompt, document=documents, max_new_tokens=32, controller="fixed")
    assert torch.equal(out.sequences, expected) and sum(copy.tokens for copy in out.stats.copies) > 15
    for copy in out.stats.copies:
        said = tokenizer.decode(expected[0, prompt.shape[1] + copy.new :][: copy.tokens])
        assert copy.document_id == "port" and text[copy.start : copy.end].strip() == said.strip()
