"""What follows which token: the model's own words, asked once, kept in a file, and good enough to draft from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import longctx
from longctx.backend import successors as asking
from longctx.backend.successors import known_successors, successors
from longctx.drafts import Successors
from longctx.errors import DraftError

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENIZER = tiny.tokenizer()
LONG = 40  # tokens of an answer that is worth asking for
WHOLE, LEAST = 60.0, 1e-9  # seconds in which all is asked, and in which a first pass is made


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGCTX_CACHE", str(tmp_path))
    return tmp_path / "successors"


def silent(warning: str) -> None:
    raise AssertionError(warning)


def forget() -> None:
    """As in a new process."""
    asking._KNOWN.clear()
    asking._NAMES.clear()


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma2", "gpt_neox"])
def test_they_are_what_the_model_says_of_short_texts(family: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_AT_ONCE", 100)
    model = tiny.model(family)
    found = successors(model, silent, None, WHOLE)
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
    first = successors(model, silent, None, WHOLE)
    (file,) = cache.iterdir()
    monkeypatch.setattr(asking, "_asked", lambda *given: pytest.fail("asked again"))
    assert successors(model, silent, None, WHOLE) is first
    forget()
    again = successors(model, silent, None, WHOLE)
    np.testing.assert_array_equal(again.tokens, first.tokens)
    np.testing.assert_array_equal(again.chances, first.chances)


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "longer"])
def test_a_damaged_file_is_made_again(damage: str, cache: Path) -> None:
    model = tiny.model("llama")
    first = successors(model, silent, None, WHOLE)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "other": b"hello", "longer": whole + b"x"}[damage])
    forget()
    np.testing.assert_array_equal(successors(model, silent, None, WHOLE).tokens, first.tokens)
    made = file.read_bytes()
    assert asking._load(file) is not None
    assert made[40:56] + made[60:] == whole[40:56] + whole[60:], "all but the digest and the seconds it took"


def test_no_flipped_bit_is_believed(cache: Path) -> None:
    successors(tiny.model("llama"), silent, None, WHOLE)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    assert asking._load(file) is not None
    for at in [*range(8 * 60), *range(8 * 60, 8 * len(whole), 4001)]:
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        file.write_bytes(flipped)
        assert asking._load(file) is None, at


def test_threads_ask_once_and_leave_one_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked, ours = tiny.model("llama"), [], asking._asked
    monkeypatch.setattr(asking, "_asked", lambda *given: asked.append(1) or ours(*given))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: successors(model, silent, None, WHOLE), range(4)))
    assert len(asked) == 1 and all(one is found[0] for one in found) and len(list(cache.iterdir())) == 1


def test_numbers_that_are_not_finite_are_no_guess_and_no_failure(cache: Path) -> None:
    """One id breaks the passes that it is part of; the file is whole and believed."""
    model = tiny.model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = torch.inf
    found = successors(model, silent, None, WHOLE)
    assert np.isfinite(found.chances).all() and not found.chances[7].any() and found.chances[300].any()
    forget()
    np.testing.assert_array_equal(successors(model, silent, None, WHOLE).chances, found.chances)


def test_more_ids_than_embeddings_and_very_few_ids_are_no_failure(cache: Path) -> None:
    model = tiny.model("llama")
    model.resize_token_embeddings(400)
    model.config.vocab_size = 480
    assert len(successors(model, silent, None, WHOLE).tokens) == 400
    assert successors(tiny.model("llama", vocab_size=2), silent, None, WHOLE).tokens.shape == (2, 2)


def test_a_model_whose_weights_are_elsewhere_is_not_asked(cache: Path) -> None:
    warned: list[str] = []
    model = tiny.model("llama").to("meta")
    for _ in range(2):
        assert len(successors(model, warned.append).tokens) == 0
    assert len(warned) == 2 and all("not in memory" in said for said in warned) and not cache.exists()


def test_a_folder_that_cannot_be_written_is_a_warning_of_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LONGCTX_CACHE", str(tmp_path / "file"))
    made = longctx.generate(
        tiny.model("llama"), TOKENIZER, torch.tensor([[3, 4, 5]]), drafters=["recycling"], max_new_tokens=LONG
    )
    batch = longctx.generate(
        tiny.model("llama"),
        TOKENIZER,
        torch.tensor([[3, 4, 5], [5, 4, 3]]),
        drafters=["recycling"],
        max_new_tokens=LONG,
    )
    reader = longctx.Reader(tiny.model("llama"), TOKENIZER, calibration=None)
    said = reader.ask(
        longctx.Document.from_text("hello world"), "what?", selector="all", drafters=["recycling"], max_new_tokens=LONG
    )
    assert batch.warnings == made.warnings == said.warnings
    (warning,) = made.warnings
    assert "could not be kept" in warning and "LONGCTX_CACHE" in warning


def test_a_slow_model_is_asked_for_a_while_and_further_by_the_next_request(cache: Path) -> None:
    model, told = tiny.model("llama"), list[Any]()
    found = successors(model, silent, lambda *stage: told.append(stage), LEAST)
    assert len(found.tokens) == 16 and told == [("asking what follows which token", 16, 480)]
    assert len(successors(model, silent, None, LEAST).tokens) == 32
    forget()
    assert len(successors(model, silent, None, LEAST).tokens) == 48, "another process goes on by the file"
    further = successors(model, silent, None, WHOLE)
    (file,) = cache.iterdir()
    file.unlink()
    forget()
    at_once = successors(model, silent, None, WHOLE)
    assert len(at_once.tokens) == 480
    np.testing.assert_allclose(further.chances, at_once.chances, rtol=1e-4)


def test_what_another_process_asked_meanwhile_is_taken_and_not_lost(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model("llama")
    few = successors(model, silent, None, LEAST)
    (file,) = cache.iterdir()
    forget()
    whole, ours = successors(model, silent, None, WHOLE), asking._asked
    long = file.read_bytes()
    known = asking._load(file)
    assert known is not None
    before = asking.replace(known, found=few)
    asking._KNOWN[model] = before
    asking._save(file, before)

    def slowly(*given: Any) -> asking.Known:
        made = ours(*given)
        file.write_bytes(long)
        return made

    monkeypatch.setattr(asking, "_asked", slowly)
    assert len(successors(model, silent, None, LEAST).tokens) == len(whole.tokens) and file.read_bytes() == long
    asking._KNOWN[model] = before
    monkeypatch.setattr(asking, "_asked", lambda *given: pytest.fail("asked again"))
    assert len(successors(model, silent, None, WHOLE).tokens) == len(whole.tokens)


def test_a_model_is_not_asked_for_ever(cache: Path) -> None:
    model = tiny.model("llama")
    few = successors(model, silent, None, LEAST, WHOLE)
    assert len(successors(model, silent, None, WHOLE, LEAST).tokens) == len(few.tokens), "so long it was asked already"
    forget()
    assert len(successors(model, silent, None, WHOLE, LEAST).tokens) == len(few.tokens), "so says the file"
    assert len(successors(model, silent, None, WHOLE, WHOLE).tokens) == 480


@pytest.mark.parametrize("first", [LEAST, WHOLE])
def test_what_was_asked_with_other_weights_is_asked_again(first: float, cache: Path) -> None:
    model = tiny.model("llama")
    chances = successors(model, silent, None, first).chances
    with torch.no_grad():
        model.lm_head.weight.mul_(3.0)
    sharper = successors(model, silent, None, WHOLE).chances
    assert sharper[: len(chances), 0].mean() > 2 * chances[:, 0].mean()
    model.resize_token_embeddings(20)
    found = successors(model, silent, None, WHOLE)
    forget()
    for file in cache.iterdir():
        file.unlink()
    np.testing.assert_array_equal(successors(model, silent, None, WHOLE).tokens, found.tokens)
    assert len(found.tokens) == 20


def test_where_nothing_is_known_weights_are_read_once_and_the_file_is_looked_for_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = tiny.model("llama"), tiny.model("llama")
    read, ours = [], asking.model_fingerprint
    monkeypatch.setattr(asking, "model_fingerprint", lambda given: read.append(given) or ours(given))
    for _ in range(3):
        assert len(known_successors(model).tokens) == 0
    assert len(read) == 1
    found = successors(other, silent, None, WHOLE)  # as another process would
    np.testing.assert_array_equal(known_successors(model).tokens, found.tokens)
    assert [given is model for given in read] == [True, False]


def test_prompts_of_a_batch_ask_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked, ours = tiny.model("llama"), [], asking._asked
    monkeypatch.setattr(
        asking,
        "_asked",
        lambda model, known, path, progress, _: asked.append(1) or ours(model, known, path, progress, LEAST),
    )
    ids = torch.tensor([[3, 4, 5], [5, 4, 3], [9, 8, 7]])
    longctx.generate(model, TOKENIZER, ids, drafters=["recycling"], max_new_tokens=LONG)
    assert len(asked) == 1
    longctx.generate(model, TOKENIZER, ids, drafters=["recycling"], max_new_tokens=LONG)
    assert len(asked) == 2


def test_of_a_batch_the_first_prompt_with_a_long_answer_asks_for_all(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first prompt's answer is over with its first token."""
    model, asked, ours = tiny.model("llama"), [], asking._asked
    monkeypatch.setattr(asking, "_asked", lambda *given: asked.append(1) or ours(*given))
    ids = torch.tensor([[3, 4, 5], [5, 4, 3], [9, 8, 7]])
    end = int(model.generate(ids[:1], do_sample=False, max_new_tokens=1, eos_token_id=None)[0, -1])
    made = longctx.generate(
        model, TOKENIZER, ids, drafters=["recycling"], max_new_tokens=LONG, eos_token_id=end, pad_token_id=0
    )
    assert len(asked) == 1 and made.sequences.shape[1] == 3 + LONG


@pytest.mark.parametrize("tokens", [1, 2, 16])
def test_a_short_answer_is_not_worth_asking_for(tokens: int, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny.model("llama"), torch.tensor([[3, 4, 5]])
    monkeypatch.setattr(asking, "_asked", lambda *given: pytest.fail("asked"))
    made = longctx.generate(model, TOKENIZER, ids, drafters=["recycling"], max_new_tokens=tokens)
    assert made.stats.tokens == tokens and not made.warnings


def test_what_is_known_is_told_without_a_pass_of_the_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    assert len(known_successors(model).tokens) == 0, "nothing yet"
    few = successors(model, silent, None, LEAST)
    monkeypatch.setattr(asking, "_asked", lambda *given: pytest.fail("asked"))
    assert known_successors(model) is few
    forget()
    np.testing.assert_array_equal(known_successors(model).tokens, few.tokens)
    with torch.no_grad():
        model.lm_head.weight.mul_(3.0)
    assert len(known_successors(model).tokens) == 0, "of these weights nothing is known"
    assert len(known_successors(tiny.model("llama").to("meta")).tokens) == 0


def test_a_model_that_always_says_the_same_after_a_token_is_drafted_from_it(cache: Path) -> None:
    """A model without attention to speak of: what follows a token is known before the first pass."""
    model = tiny.model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    ids = torch.tensor([[30, 31, 32]])
    successors(model, silent, None, WHOLE)
    with_prior = longctx.generate(
        model, TOKENIZER, ids, drafters=["recycling"], max_new_tokens=30, controller="fixed:nodes=8"
    )
    without = longctx.generate(
        model, TOKENIZER, ids, drafters=["recycling:prior=false"], max_new_tokens=30, controller="fixed:nodes=8"
    )
    assert torch.equal(with_prior.sequences, without.sequences)
    assert with_prior.stats.rounds < 18 < without.stats.rounds


def test_a_long_answer_is_drafted_better_from_where_the_model_was_asked(cache: Path) -> None:
    """What it says after a token does not follow what stands before, and it never comes to a token again."""
    model = tiny.model("llama")
    vocabulary = model.config.vocab_size
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.randn(vocabulary, model.config.hidden_size))
        states = torch.nn.functional.normalize(model.model.embed_tokens.weight, dim=-1)
        model.lm_head.weight.copy_(states.roll(1, 0))  # after every id the next one is likeliest
    ids = torch.tensor([[30, 31, 32]])
    options: dict[str, Any] = {"drafters": ["recycling"], "max_new_tokens": 60, "controller": "fixed:nodes=8"}
    first = longctx.generate(model, TOKENIZER, ids, **options)
    again = longctx.generate(model, TOKENIZER, ids, **options)
    assert torch.equal(first.sequences, again.sequences)
    assert first.sequences[0].tolist() == [*range(30, 93)], "no token comes twice"
    assert again.stats.rounds < 15, "known before the first pass"
    assert 16 < first.stats.rounds < 16 + 15, "sixteen tokens one by one, and then by what was asked"


def test_what_goes_wrong_while_asking_is_an_error_of_the_drafter(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Successors:
        raise RuntimeError("no memory")

    monkeypatch.setattr(asking, "_asked", broken)
    with pytest.raises(DraftError, match="recycling"):
        longctx.generate(
            tiny.model("llama"), TOKENIZER, torch.tensor([[3, 4]]), drafters=["recycling"], max_new_tokens=LONG
        )
