"""Plain decoding against Hugging Face's own generate, and what stops it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import tiny
import torch

from longctx.backend import decode as module
from longctx.backend.attention import installed
from longctx.backend.decode import decode
from longctx.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT = torch.randint(4, 470, (1, 37), generator=torch.Generator().manual_seed(0))


def generated(model: Any, new: int) -> list[int]:
    with torch.inference_mode():
        out = model.generate(PROMPT, do_sample=False, max_new_tokens=new, eos_token_id=None, pad_token_id=1)
    return out[0, PROMPT.shape[1] :].tolist()


@pytest.mark.parametrize("piece", [1024, 5])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_decoding_equals_generate_however_the_prompt_is_fed(
    family: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PIECE", piece)
    model = tiny.model(family)
    expected = generated(model, 12)
    assert len(set(expected)) > 1
    assert list(decode(model, PROMPT[0].tolist(), 12, stops=())) == expected


def test_decoding_ends_before_a_stop_and_at_the_limit_without_a_pass_for_nobody() -> None:
    model = tiny.model()
    expected = generated(model, 12)
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    assert list(decode(model, PROMPT[0].tolist(), 5, stops=())) == expected[:5]
    assert len(passes) == 5  # the prompt, and one for every token that another follows
    stop = expected[7]
    assert list(decode(model, PROMPT[0].tolist(), 12, stops=(stop,))) == expected[: expected.index(stop)]


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others() -> None:
    model = tiny.model()
    ids = PROMPT[0].tolist()

    def draw(seed: int | None) -> list[int]:
        return list(decode(model, ids, 20, (), temperature=1.0, seed=seed))

    assert draw(3) == draw(3) != draw(4)
    assert draw(None) != draw(None)
    state = torch.get_rng_state()
    draw(3)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers were used up"


def test_a_vanishing_temperature_is_greedy_and_a_vast_one_is_uniform() -> None:
    model = tiny.model()
    ids = PROMPT[0].tolist()
    assert list(decode(model, ids, 8, (), temperature=1e-40, seed=0)) == generated(model, 8)
    drawn = list(decode(model, ids, 60, (), temperature=1e30, seed=0))
    assert len(set(drawn)) > 40


class Broken(torch.nn.Module):
    """A model whose prediction turns bad at step ``at``."""

    def __init__(self, inner: Any, value: float, at: int, everywhere: bool) -> None:
        super().__init__()
        self.inner, self.value, self.at, self.everywhere = inner, value, at, everywhere
        self.config, self.device = inner.config, inner.device
        self.steps = 0

    def forward(self, **kwargs: Any) -> Any:
        out = self.inner(**kwargs)
        if self.steps == self.at:
            out.logits[..., slice(None) if self.everywhere else slice(5, 6)] = self.value
        self.steps += 1
        return out


@pytest.mark.parametrize(
    ("value", "everywhere"), [(float("nan"), False), (float("nan"), True), (float("inf"), False), (float("-inf"), True)]
)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_numbers_that_are_not_finite_are_an_error_at_their_position(
    value: float, everywhere: bool, temperature: float
) -> None:
    model = Broken(tiny.model(), value, 2, everywhere)
    seen: list[int] = []
    with pytest.raises(ModelError, match=f"position {PROMPT.shape[1] + 2} is not finite"):
        for token in decode(model, PROMPT[0].tolist(), 9, (), temperature, 0):  # type: ignore[arg-type]
            seen.append(token)
    assert len(seen) == 2


def test_a_token_that_the_model_forbids_is_no_error() -> None:
    model = Broken(tiny.model(), float("-inf"), 1, everywhere=False)
    assert 5 not in list(decode(model, PROMPT[0].tolist(), 3, (), 1.0, 0))  # type: ignore[arg-type]


def test_progress_counts_the_prompt_and_raising_from_it_stops_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 10)
    model = tiny.model()
    seen: list[tuple[str, int, int]] = []
    list(decode(model, PROMPT[0].tolist(), 1, (), progress=lambda *at: seen.append(at)))
    assert seen == [("prompt", n, 37) for n in (10, 20, 30, 37)]

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(KeyboardInterrupt):
        list(decode(model, PROMPT[0].tolist(), 1, (), progress=interrupt))
    assert len(passes) == 1


def test_no_reading_pass_switches_the_model_in_the_middle_of_a_decoding_pass() -> None:
    """A mask made for one attention function and used by another is wrong: the passes of two threads take turns."""
    model = tiny.model("mistral")
    expected = generated(model, 3)
    entered, inside = threading.Event(), []

    def read() -> None:
        with installed(model):
            entered.set()

    other = threading.Thread(target=read)

    def in_the_middle(*_: Any) -> None:
        if not other.ident:
            other.start()
            entered.wait(0.2)  # as long as it takes a switch that is not held back
            inside.append(entered.is_set())

    model.model.layers[1].register_forward_pre_hook(in_the_middle)
    assert list(decode(model, PROMPT[0].tolist(), 3, ())) == expected
    other.join()
    assert inside == [False] and entered.is_set()
    assert model.config._attn_implementation == "eager"


def test_a_model_in_training_mode_decodes_without_dropout_and_stays_in_training_mode() -> None:
    model = tiny.model(attention_dropout=0.5)
    expected = generated(model, 8)
    model.train()
    assert list(decode(model, PROMPT[0].tolist(), 8, ())) == expected
    assert all(module.training for module in model.modules())
