"""A few rows by a matrix: the numbers of a linear layer, when it is taken, and that trees are verified by it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from longctx.backend import lean, narrow, target, trial
from longctx.backend.lean import Lean
from longctx.backend.target import RowTarget

CPU = torch.device("cpu")
PROMPT = [7, 300, 41, 5, 220, 99, 18, 77]
TREE = ([30, 31, 32, 33, 34, 35], [-1, 0, 1, 1, 0, 4])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_the_product_is_that_of_a_linear_layer(rows: int, width: int, out: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(count, width, generator=draw, dtype=torch.float64) for count in (rows, out))
    bias = torch.randn(out, generator=draw, dtype=torch.float64)
    for added in (None, bias):
        found = narrow.product(x, weight, added)
        assert found.shape == (rows, out)
        torch.testing.assert_close(found, F.linear(x, weight, added), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("ours", "theirs", "expected"), [(1.0, 2.0, True), (1.0, 1.1, False), (2.0, 1.0, False)])
def test_it_is_taken_where_it_wins_by_a_fifth(
    ours: float, theirs: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter((ours, theirs))
    monkeypatch.setattr(trial, "seconds", lambda work: next(times))
    assert narrow._wins.__wrapped__(1) is expected


def test_one_row_and_several_are_tried_apart_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(narrow, "_wins", lambda rows: tried.append(rows) or rows > 1)
    assert [narrow.narrow(rows, torch.float32, CPU) for rows in (1, 2, 12)] == [False, True, True]
    assert tried == [1, 2, 4]
    assert not narrow.narrow(13, torch.float32, CPU) and not narrow.narrow(1, torch.bfloat16, CPU)
    assert not narrow.narrow(1, torch.float32, torch.device("meta")) and len(tried) == 3


def test_the_trial_holds_the_product_against_a_linear_layer_of_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[torch.Tensor] = []
    monkeypatch.setattr(narrow, "_TRIAL", (64, 32))
    monkeypatch.setattr(trial, "seconds", lambda work: timed.append(work()) or 1.0)
    assert not narrow._wins.__wrapped__(3)
    assert [made.shape for made in timed] == [(3, 64), (3, 64)] and bool((timed[0] == 32).all())
    assert torch.equal(*timed) and not narrow.narrow(0, torch.float32, CPU)


def scored(model: Any) -> list[torch.Tensor]:
    """What a prompt's end, a tree behind it and the token after a kept path say."""
    made = RowTarget(model, 40)
    found = [made.score(PROMPT, range(-1, len(PROMPT) - 1), 1)]
    made.commit(range(len(PROMPT)))
    tokens, parents = TREE
    found.append(made.score(tokens, parents, len(tokens)))
    made.commit([0, 4, 5])
    return [*found, made.score([36], [-1], 1)]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Few rows are always taken the other way; the rows of each pass that were."""
    taken: list[int] = []
    ours = Lean.run
    monkeypatch.setattr(Lean, "run", lambda self, ids, *more: taken.append(ids.shape[1]) or ours(self, ids, *more))
    for module in (lean, target):
        monkeypatch.setattr(module, "narrow", lambda rows, dtype, device: rows <= 12)
    return taken


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("llama", {"attention_bias": True, "mlp_bias": True}), ("qwen2", {}), ("qwen3", {})],
)
def test_trees_are_verified_by_it_with_the_models_own_numbers(
    family: str, changes: dict[str, Any], runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model(family, **changes)
    found = scored(model)
    assert runs[-3:] == [8, 6, 1], "what comes before is the comparison of the roads"
    monkeypatch.setattr(target, "narrow", lambda *given: False)
    for ours, plain in zip(found, scored(model), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["mistral", "phi3", "gemma2", "gemma3", "gpt_neox"])
def test_models_of_other_layers_verify_as_they_did(
    family: str, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model(family)
    found = scored(model)
    assert not runs
    monkeypatch.setattr(target, "narrow", lambda *given: False)
    for ours, plain in zip(found, scored(model), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_a_hook_of_the_user_is_run_at_every_pass(runs: list[int]) -> None:
    model = tiny.model("llama")
    seen: list[int] = []
    handle = model.model.layers[1].mlp.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    scored(model)
    handle.remove()
    assert seen == [8, 6, 1] and not runs


def test_a_hook_that_comes_between_two_passes_is_run(runs: list[int]) -> None:
    model = tiny.model("llama")
    made = RowTarget(model, 40)
    made.score(PROMPT, range(-1, len(PROMPT) - 1), 1)
    made.commit(range(len(PROMPT)))
    before = len(runs)
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, out: 0 * out)
    made.score([30], [-1], 1)
    assert before and len(runs) == before


@pytest.mark.parametrize("shift", [5e-3, 0.2])
def test_a_model_that_moves_one_logit_a_little_is_not_taken_for_one_of_known_layers(
    shift: float, runs: list[int]
) -> None:
    model = tiny.model("llama")

    kind = type(model)

    @functools.wraps(kind.forward)
    def nudged(self: Any, *given: Any, **more: Any) -> Any:
        out = kind.forward(self, *given, **more)
        out.logits[..., 41] += shift
        return out

    plain = scored(model)
    model.__class__ = type("Nudged", (kind,), {"forward": nudged})
    runs.clear()
    found = scored(model)
    assert set(runs) <= {24}, "the comparison alone"
    torch.testing.assert_close(found[2][0, 41] - plain[2][0, 41], torch.tensor(shift), rtol=0.01, atol=1e-4)


def test_a_class_that_computes_otherwise_from_now_on_is_noticed(
    runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model("llama")
    plain = scored(model)
    kind = type(model.model.layers[0].mlp)
    own = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: 0.5 * own(self, x))
    assert not torch.allclose(scored(model)[2], plain[2], atol=1e-3)


def test_hooks_for_all_modules_are_run(runs: list[int]) -> None:
    model = tiny.model("llama")
    scored(model)
    before, seen = len(runs), []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    scored(model)
    handle.remove()
    assert len(runs) == before and type(model.model.layers[0].mlp) in seen
