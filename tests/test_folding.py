"""Tokens that are one word: case and white space aside, by every way of writing white space; and the answer stays."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

import longctx
from longctx.backend import folding
from longctx.backend.folding import folds

pytestmark = pytest.mark.usefixtures("one_thread")


class Words:
    def __init__(self, *words: str) -> None:
        self.words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in reversed(list(enumerate(self.words)))}


def test_words_fold_to_the_lowest_id_of_the_same_word() -> None:
    words = Words(
        "the",
        "The",
        "\u0120the",
        "\u2581THE",
        "then",
        "\u010a",
        "\u0120\u0120",
        "\u00c3",
        "\u00e3",
        ".\u010a\u010a",
        ".",
    )
    assert folds(words).tolist() == [0, 0, 0, 0, 4, 5, 5, 7, 8, 9, 9]


def test_ids_that_are_no_token_are_themselves_and_a_vocabulary_is_folded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Holed(Words):
        def get_vocab(self) -> dict[str, int]:
            return {"a": 2, "A": 4}

    words = Holed()
    first = folds(words)
    assert first.tolist() == [0, 1, 2, 3, 2]
    monkeypatch.setattr(folding, "_folded", lambda *_: pytest.fail("folded again"))
    assert folds(words) is first


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_an_answer_stays_as_it_is_whatever_its_words_fold_to(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where a fold makes words of what are none."""
    model, tokenizer = tiny.model(family), tiny.tokenizer()
    prompt = torch.randint(4, 470, (1, 9), generator=torch.Generator().manual_seed(1)).repeat(1, 3)
    options: dict[str, Any] = {"max_new_tokens": 24, "eos_token_id": None, "pad_token_id": 1}
    with torch.inference_mode():
        expected = model.generate(prompt, do_sample=False, **options)
    drafted = []
    for by in (1, 7, 500):
        made = torch.arange(tiny.VOCAB).numpy().astype("int32") // by * by
        monkeypatch.setattr("longctx.generation.folds", lambda _, made=made: made)
        out = longctx.generate(model, tokenizer, prompt, drafters=["document"], controller="fixed:nodes=8", **options)
        assert torch.equal(out.sequences, expected)
        drafted.append(out.stats.drafted)
    assert drafted[0] < drafted[-1], "the folds were not used"


def test_a_processor_is_asked_for_its_tokenizer_and_what_has_no_vocabulary_folds_nothing() -> None:
    class Processor:
        def __init__(self, tokenizer: Any) -> None:
            self.tokenizer = tokenizer

    tokenizer = tiny.tokenizer("base")
    assert folds(Processor(tokenizer)) is folds(tokenizer)
    assert folds(Processor(object())) is None
