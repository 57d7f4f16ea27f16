"""What follows which token: the model's own words, asked once, kept in a file, and good enough to draft from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import longctx
from longctx.backend import successors as asking
from longctx.backend.successors import successors
from longctx.drafts import Successors
from longctx.errors import DraftError

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENIZER = tiny.tokenizer()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGCTX_CACHE", str(tmp_path))
    return tmp_path / "successors"


def silent(warning: str) -> None:
    raise AssertionError(warning)


def forget() -> None:
    """As in a new process."""
    asking._KNOWN.clear()


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma2", "gpt_neox"])
def test_they_are_what_the_model_says_of_short_texts(family: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_AT_ONCE", 100)
    model = tiny.model(family)
    found = successors(model, silent)
    vocabulary = model.config.vocab_size
    assert found.tokens.shape == found.chances.shape == (vocabulary, 16)
    before = asking._expected(model, vocabulary)
    for token in (0, 7, 99, 100, vocabulary - 1):
        with torch.inference_mode():
            said = model(input_ids=torch.tensor([[*before, token]])).logits[0, -1].float().softmax(-1)
        expected = said.topk(16)
        np.testing.assert_allclose(found.chances[token], expected.values.numpy(), rtol=1e-3)
        np.testing.assert_allclose(said[found.tokens[token].tolist()].numpy(), expected.values.numpy(), rtol=1e-3)


def test_the_beginning_is_what_the_model_expects_most_often() -> None:
    model = tiny.model("llama")
    with torch.no_grad():
        model.lm_head.weight[[41, 42]] = model.lm_head.weight[[41, 42]] * 0
        bias = torch.zeros(model.config.vocab_size)
        bias[41], bias[42] = 30.0, 31.0
        model.lm_head.bias = torch.nn.Parameter(bias)
    assert asking._expected(model, model.config.vocab_size) == [41, 42]


def test_the_file_is_read_and_the_model_not_asked_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    first = successors(model, silent)
    (file,) = cache.iterdir()
    monkeypatch.setattr(asking, "_asked", lambda *given: pytest.fail("asked again"))
    assert successors(model, silent) is first
    forget()
    again = successors(model, silent)
    np.testing.assert_array_equal(again.tokens, first.tokens)
    np.testing.assert_array_equal(again.chances, first.chances)


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "array"])
def test_a_damaged_file_is_made_again(damage: str, cache: Path) -> None:
    model = tiny.model("llama")
    first = successors(model, silent)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    if damage == "array":
        np.save(file, first.tokens)
    else:
        file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "other": b"hello"}[damage])
    forget()
    np.testing.assert_array_equal(successors(model, silent).tokens, first.tokens)
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_a_warning_of_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LONGCTX_CACHE", str(tmp_path / "file"))
    made = longctx.generate(
        tiny.model("llama"), TOKENIZER, torch.tensor([[3, 4, 5]]), drafters=["recycling"], max_new_tokens=4
    )
    (warning,) = made.warnings
    assert "could not be kept" in warning and "LONGCTX_CACHE" in warning


def test_a_slow_model_is_asked_for_a_while_only(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_SECONDS", -1.0)
    monkeypatch.setattr(asking, "_AT_ONCE", 64)
    told: list[Any] = []
    found = successors(tiny.model("llama"), silent, lambda *stage: told.append(stage))
    assert len(found.tokens) == 64 and told == [("asking what follows which token", 64, 480)]


def test_a_model_that_always_says_the_same_after_a_token_is_drafted_from_it(cache: Path) -> None:
    """A model without attention to speak of: what follows a token is known before the first pass."""
    model = tiny.model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    ids = torch.tensor([[30, 31, 32]])
    with_prior = longctx.generate(
        model, TOKENIZER, ids, drafters=["recycling"], max_new_tokens=30, controller="fixed:nodes=8"
    )
    without = longctx.generate(
        model, TOKENIZER, ids, drafters=["recycling:prior=false"], max_new_tokens=30, controller="fixed:nodes=8"
    )
    assert torch.equal(with_prior.sequences, without.sequences)
    assert with_prior.stats.rounds < 18 < without.stats.rounds


def test_what_goes_wrong_while_asking_is_an_error_of_the_drafter(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Successors:
        raise RuntimeError("no memory")

    monkeypatch.setattr(asking, "_asked", broken)
    with pytest.raises(DraftError, match="recycling"):
        longctx.generate(
            tiny.model("llama"), TOKENIZER, torch.tensor([[3, 4]]), drafters=["recycling"], max_new_tokens=4
        )
