"""The library's own passes over a compressed context: by the shorter road, and what it must not pass by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest
import tiny
import torch
from contexts import CONTEXT, IDS, SQUEEZED

import longctx
import longctx.kv
from longctx import generation
from longctx.backend.attaching import announced
from longctx.backend.attention import NAME
from longctx.backend.behind import BoundedTarget
from longctx.backend.bounded import BoundedCache
from longctx.backend.fused import Fused
from longctx.backend.lean import Lean
from longctx.backend.narrow import MOST
from longctx.errors import CacheError, ModelError

BEHIND = IDS[0, CONTEXT:].tolist()
POLICIES = ["full", SQUEEZED, "quest:budget=40,page=4", "lm_infinite:budget=24,sinks=2,window=16"]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each pass that went by the lean layers, product by product: the faster ones here for any number."""
    found: list[int] = []
    run = Lean.run

    def noted(self: Lean, ids: torch.Tensor, cache: Any, *given: Any, **more: Any) -> torch.Tensor:
        if type(cache) is BoundedCache:
            found.append(ids.shape[1])
        return run(self, ids, cache, *given, **more)

    monkeypatch.setattr(Fused, "wins", lambda self, rows: False)  # vectors that are short enough would fit these sizes
    monkeypatch.setattr(Lean, "run", noted)
    monkeypatch.setattr(Lean, "faster", lambda self: [True] * (MOST + 1))
    return found


def said(model: Any, context: longctx.kv.CompressedContext, audit_every: int = 0) -> tuple[torch.Tensor, Any]:
    """Logits behind a question and behind each of four tokens after it, decoded as answers are; and the report."""
    with context.attached(model, audit_every=audit_every) as cache:
        target = BoundedTarget(model, cache)
        logits = []
        for tokens in (BEHIND[:16], *([token] for token in BEHIND[16:])):
            logits.append(target.score(tokens, range(-1, len(tokens) - 1), 1))
            target.commit(range(len(tokens)))
        return torch.cat(logits), cache.report()


def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Up to rounding of float32, which takes logits some 3e-6 of the largest away from those of float64."""
    return bool((one - other).abs().max() < 1e-5 * other.abs().max())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_answers_behind_a_context_are_what_the_models_own_passes_say(
    family: str, policy: str, passes: list[int]
) -> None:
    model = tiny.model(family)
    context = longctx.kv.compress(model, IDS[:, :CONTEXT], policy)
    passes.clear()
    found, report = said(model, context, audit_every=2)
    assert passes == [16, 1, 1, 1, 1]
    with context.attached(model, audit_every=2) as cache, torch.inference_mode():
        expected = [
            model(torch.tensor([tokens]), past_key_values=cache, use_cache=True).logits[0, -1:]
            for tokens in (BEHIND[:16], *([token] for token in BEHIND[16:]))
        ]
        assert passes == [16, 1, 1, 1, 1]  # a user's own passes are the model's
        other = cache.report()
    assert alike(found, torch.cat(expected))
    counted = {name: value for name, value in asdict(report).items() if value is not None}
    assert counted == pytest.approx({name: getattr(other, name) for name in counted}, rel=1e-3)


def test_a_context_is_read_and_measured_by_the_shorter_road_too(passes: list[int]) -> None:
    model = tiny.model("llama")
    grown = longctx.kv.compress(model, IDS[:, :CONTEXT], POLICIES[-1])
    assert passes == [16] * 4 + [6]
    shorter = said(model, grown)[0]
    passes.clear()
    squeezed = longctx.kv.compress(model, IDS[:, :CONTEXT], SQUEEZED)
    assert passes == [48]  # the fragments that its estimates are measured on
    hook = model.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    passes.clear()
    assert alike(said(model, longctx.kv.compress(model, IDS[:, :CONTEXT], POLICIES[-1]))[0], shorter)
    again = longctx.kv.compress(model, IDS[:, :CONTEXT], SQUEEZED)
    assert passes == []
    hook.remove()
    for one, other in zip(squeezed._context.layers, again._context.layers, strict=True):
        assert one.slack is not None and other.slack is not None and torch.allclose(one.slack, other.slack, atol=1e-3)


def test_what_a_user_hooks_onto_the_model_is_not_passed_by(passes: list[int]) -> None:
    model = tiny.model("llama")
    context = longctx.kv.compress(model, IDS[:, :CONTEXT], "full")
    before = said(model, context)[0]
    passes.clear()
    hook = model.model.layers[1].mlp.register_forward_hook(lambda module, given, out: 2 * out)
    assert not torch.allclose(said(model, context)[0], before, atol=1e-3)
    assert passes == []
    hook.remove()
    assert alike(said(model, context)[0], before) and passes == [16, 1, 1, 1, 1]


def test_no_pass_goes_to_another_model_or_behind_what_is_closed_or_broken(passes: list[int]) -> None:
    model, other = tiny.model("llama"), tiny.model("llama", seed=5)
    context, another = (longctx.kv.compress(one, IDS[:, :CONTEXT], SQUEEZED) for one in (model, other))

    def score(model: Any, cache: Any, tokens: Sequence[int] = (5, 6)) -> None:
        BoundedTarget(model, cache).score(tokens, range(-1, len(tokens) - 1), 1)

    passes.clear()
    with context.attached(model) as cache:
        with pytest.raises(CacheError, match="did not come through the model"):
            score(other, cache)
        score(model, cache)
        assert passes == [2] and not cache.is_announced
        cache._forks[0].crop(-1)  # as a pass that failed halfway leaves it
        with pytest.raises(CacheError, match="failed halfway"):
            score(model, cache)
    with pytest.raises(CacheError, match="after its context was closed"):
        score(model, cache)
    with (
        context.attached(model) as cache,
        another.attached(other),
        pytest.raises(CacheError, match="attached to another"),
    ):
        score(other, cache)
    assert passes == [2] and model.config._attn_implementation != NAME


@pytest.mark.parametrize("shorter", [True, False])
@pytest.mark.parametrize("reached", [True, False])
def test_a_pass_that_ends_early_spoils_a_cache_if_it_reached_it(
    reached: bool, shorter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers that keep keys may hold the tokens then: of a single one their lengths say nothing.

    Whichever road the pass after it takes, nothing that the layers were left in the middle of is held against it.
    """
    monkeypatch.setattr(Lean, "faster", lambda self: [shorter] * (MOST + 1))
    model = tiny.model("llama", num_hidden_layers=1)
    context = longctx.kv.compress(model, IDS[:, :CONTEXT], "full")
    with context.attached(model) as cache:
        with pytest.raises(KeyboardInterrupt), announced(model, cache, IDS[:, :2]):
            if reached:
                cache.update(*[torch.zeros(1, model.config.num_key_value_heads, 2, model.config.head_dim)] * 2, 0)
            raise KeyboardInterrupt
        assert cache.is_broken == reached
        if reached:
            with pytest.raises(CacheError, match="failed halfway"):
                BoundedTarget(model, cache).score(BEHIND[:2], (-1, 0), 1)
            cache.rewind()
        said = BoundedTarget(model, cache).score(BEHIND[:2], (-1, 0), 1)
    with torch.inference_mode():
        assert alike(said[0], model(IDS[:, : CONTEXT + 2]).logits[0, -1])


@pytest.mark.parametrize("place", ["embed_tokens", "norm"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_pass_of_the_model_that_ends_early_spoils_a_cache_if_it_reached_it(
    error: type[BaseException], place: str
) -> None:
    """Hooks do not hear of an interrupt, and the lengths of a single layer say nothing of one either."""
    model = tiny.model("llama", num_hidden_layers=1)
    context = longctx.kv.compress(model, IDS[:, :CONTEXT], "full")

    def stop(*_: Any) -> None:
        raise error("stopped")

    def said(ids: torch.Tensor, cache: BoundedCache) -> torch.Tensor:
        with torch.no_grad():
            return model(ids, past_key_values=cache, use_cache=True).logits[0, -1]  # type: ignore[no-any-return]

    with context.attached(model) as cache:
        said(IDS[:, CONTEXT : CONTEXT + 3], cache)
        hook = getattr(model.model, place).register_forward_pre_hook(stop)
        with pytest.raises(error, match="stopped"):
            said(IDS[:, CONTEXT + 3 : CONTEXT + 5], cache)
        hook.remove()
        if place == "embed_tokens":
            expected = model(IDS[:, : CONTEXT + 5]).logits[0, -1]
            assert alike(said(IDS[:, CONTEXT + 3 : CONTEXT + 5], cache), expected)
            return
        for again in (
            lambda: said(IDS[:, CONTEXT + 3 : CONTEXT + 5], cache),
            lambda: said(IDS[:, CONTEXT + 3 : CONTEXT + 5], cache.fork()),
        ):
            with pytest.raises(CacheError, match="failed halfway"):
                again()
        with pytest.raises(CacheError, match="failed halfway"):
            BoundedTarget(model, cache).score(BEHIND[:2], (-1, 0), 1)
        cache.rewind()
        assert alike(said(IDS[:, CONTEXT:], cache), model(IDS).logits[0, -1])


def test_a_layer_that_attends_elsewhere_is_named() -> None:
    model = tiny.model("llama")
    context = longctx.kv.compress(model, IDS[:, :CONTEXT], SQUEEZED)
    with (
        context.attached(model) as cache,
        pytest.raises(ModelError, match=r"layers \[1\] of LlamaForCausalLM do not attend"),
        announced(model, cache, IDS[:, :2]) as known,
    ):
        assert known
        states = torch.zeros(1, model.config.num_key_value_heads, 2, model.config.head_dim)
        cache.update(states, states, 1)


def test_a_long_question_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be taken back over a bounded cache, but what is read in pieces goes on."""
    rows: list[int] = []
    scored = BoundedTarget._scored

    def noted(self: BoundedTarget, tokens: Sequence[int], *more: Any) -> torch.Tensor:
        rows.append(len(tokens))
        return scored(self, tokens, *more)

    monkeypatch.setattr(BoundedTarget, "_scored", noted)
    monkeypatch.setattr(generation, "PIECE", 8)
    model = tiny.model("llama")
    given: dict[str, Any] = {"max_new_tokens": 3, "eos_token_id": None, "pad_token_id": 1}
    with longctx.kv.compress(model, IDS[:, :CONTEXT], "full").attached(model) as cache:
        out = longctx.generate(model, tiny.tokenizer(), IDS, drafters=[], past_key_values=cache, **given)
    assert rows == [8, 8, 4, 1, 1] and torch.equal(out.sequences, model.generate(IDS, do_sample=False, **given))
