"""The shorter road: what is verified by it has the model's own numbers, and whatever comes between is noticed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from machines import needed
from targets import PROMPT, TREE, scored
from ways import always

import longctx.kv
from longctx.backend import lean, narrow, quick, roads
from longctx.backend.behind import BoundedTarget
from longctx.backend.capability import alone_because, capability
from longctx.backend.fused import Fused
from longctx.backend.lean import Lean
from longctx.backend.roads import Road
from longctx.backend.target import RowTarget, score_together
from longctx.kernels import few_queries, few_rows

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.mark.parametrize(("family", "tries"), [("llama", True), ("gpt_neox", False)])
def test_a_target_knows_what_products_take_once_it_has_read_the_prompt(family: str, tries: bool) -> None:
    made = RowTarget(tiny.model(family), 40)
    assert made.products == {}
    made.score(PROMPT, range(-1, len(PROMPT) - 1), 1)
    assert made.products == (Lean(made._model).products() if tries else {})
    assert all(seconds > 0 for seconds in made.products.values())


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Few rows are always taken the other way, product by product; the rows of each pass that were."""
    monkeypatch.setattr(Fused, "wins", lambda self, rows: False)
    taken: list[int] = []
    ours = Lean.run

    def noted(self: Lean, ids: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
        if not more:  # as in the comparison of roads, where a layer of these models fits the kernel
            taken.append(ids.shape[1])
        return ours(self, ids, *given, **more)

    monkeypatch.setattr(Lean, "run", noted)
    monkeypatch.setattr(narrow, "_ways", always(narrow._weights_first))
    return taken


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", [narrow._widened_rows_first, narrow._kernel])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_what_is_between_products_that_widen_is_nearer_the_truth_and_kept_in_the_models_format(
    family: str, way: narrow.Way, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trees, packs of several requests, tokens behind a compressed context; keys are stored as the model has them."""
    if way is narrow._kernel and not few_rows.version(dtype, 64):
        pytest.skip("no kernel here")
    monkeypatch.setattr(Fused, "wins", lambda self, rows: False)
    model = tiny.model(family, dtype=dtype)
    context = longctx.kv.compress(model, [PROMPT * 5], "full")

    def behind() -> torch.Tensor:
        with context.attached(model) as cache:
            target = BoundedTarget(model, cache)
            first = target.score(PROMPT, range(-1, len(PROMPT) - 1), 1)
            target.commit(range(len(PROMPT)))
            last = target.score([30], [-1], 1)
            assert {layer.keys.dtype for layer in cache.layers} == {dtype}
            return torch.cat((first, last))

    def together() -> torch.Tensor:
        targets = [RowTarget(model, 40) for _ in range(2)]
        for target in targets:
            target.score(PROMPT, range(-1, len(PROMPT) - 1), 1)
            target.commit(range(len(PROMPT)))
        found = torch.cat(score_together(model, [(target, *TREE, 6) for target in targets]))
        for target in targets:
            target.commit(range(6))
            assert target.cache.held(0)[0].dtype == dtype
        return found

    def said() -> list[torch.Tensor]:
        return [*scored(model), together(), behind()]

    monkeypatch.setattr(narrow, "_ways", always(way))
    wide = said()
    monkeypatch.setattr(narrow, "_ways", always(narrow._usual))
    plain = said()
    context = longctx.kv.compress(model.float(), [PROMPT * 5], "full")
    dtype = torch.float32
    exact = said()
    far = [
        [float((a.float() - b).norm() / b.norm()) for a, b in zip(some, exact, strict=True)] for some in (wide, plain)
    ]
    assert max(far[0]) < 0.05 and sum(far[0]) < sum(far[1])


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
    monkeypatch.setattr(narrow, "_ways", always(narrow._usual))
    for ours, plain in zip(found, scored(model), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_few_rows_are_multiplied_in_the_weights_own_format(runs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where many rows are faster in a wider one, a few do not pay for the conversion."""
    for module in (lean, roads):
        monkeypatch.setattr(module, "arithmetic", lambda *_: torch.float32)
    model = tiny.model("qwen2", dtype=torch.bfloat16)
    formats: set[torch.dtype] = set()
    ours = narrow.product
    noted = functools.wraps(ours)(lambda x, *more: formats.add(x.dtype) or ours(x, *more))
    monkeypatch.setattr(lean, "product", noted)
    found = scored(model)
    assert runs[-3:] == [8, 6, 1]
    formats.clear()
    scored(model)
    assert formats == {torch.bfloat16}
    monkeypatch.setattr(narrow, "_ways", always(narrow._usual))
    plain, truth = scored(model), scored(model.float())
    for one, other, exact in zip(found, plain, truth, strict=True):
        assert float((one.float() - exact).norm()) < 1.5 * float((other.float() - exact).norm())


def test_products_of_small_weights_alone_are_not_worth_another_road(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fused, "wins", lambda self, rows: False)
    found = Lean(tiny.model("llama", attention="sdpa"))
    monkeypatch.setattr(lean, "_SHARE", 0.2)  # in so small a model keys and values are a tenth
    shapes = {name: part.weight.shape for name, part in found.layers[0].linear.items()}
    for name, worth in (("k_proj", False), ("gate_proj", True)):
        monkeypatch.setattr(lean, "wins", lambda rows, weight, name=name: rows == 3 and weight.shape == shapes[name])
        assert [rows for rows, faster in enumerate(found.faster()) if faster] == ([3] if worth else [])


def test_the_head_counts_for_passes_whose_logits_are_all_asked_for_and_not_for_a_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Fused, "wins", lambda self, rows: False)
    found = Lean(tiny.model("llama", attention="sdpa"))
    monkeypatch.setattr(lean, "wins", lambda rows, weight: weight is found.head.weight)
    assert found.faster() == [rows < 64 for rows in range(narrow.MOST + 1)]


def test_no_pass_behind_the_prompt_has_a_trial_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """All shapes are tried with the first pass, though the first of them would decide."""
    tried: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        narrow, "_ways", lambda *given: tried.append(given[1:3]) or always(narrow._weights_first)(*given)
    )
    model = tiny.model("llama", intermediate_size=96)
    made = RowTarget(model, 200)
    prompt = (PROMPT * 10)[:70]
    made.score(prompt, range(-1, len(prompt) - 1), 1)
    made.commit(range(len(prompt)))
    before = set(tried)
    made.score([30, 31], [-1, 0], 2)
    assert set(tried) == before and len(before) >= 4


@needed
def test_nor_one_of_attention_where_the_prompt_is_long_enough_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[torch.dtype, int]] = []
    monkeypatch.setattr(quick, "_ways", lambda dtype, width, threads: tried.append((dtype, width)) or [1] * 4 + [0] * 5)
    monkeypatch.setattr(quick, "_LEAST", 60)
    attended: list[int] = []
    attend = few_queries.attend
    monkeypatch.setattr(few_queries, "attend", lambda *given: attended.append(given[0].shape[2]) or attend(*given))
    for count, expected in ((59, []), (60, [1, 2, 4, 8])):
        attended.clear()
        made = RowTarget(tiny.model("llama", head_dim=32), 200)
        prompt = (PROMPT * 10)[:count]
        made.score(prompt, range(-1, count - 1), 1)
        assert attended == expected
    assert set(tried) == {(torch.float32, 32)}


def test_what_a_model_can_do_is_asked_of_its_own_layers(runs: list[int]) -> None:
    assert capability(tiny.model("llama")).rows == "tree" and alone_because(tiny.model("qwen2")) == ""
    assert not runs


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_prompts_of_a_batch_are_verified_by_it_too(
    family: str, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model(family)

    def scored_together() -> list[torch.Tensor]:
        made = [RowTarget(model, 40) for _ in range(2)]
        chains = [(PROMPT[:length], range(-1, length - 1), 1) for length in (8, 5)]
        found = score_together(model, [(one, *chain) for one, chain in zip(made, chains, strict=True)])
        for one, (tokens, *_) in zip(made, chains, strict=True):
            one.commit(range(len(tokens)))
        tokens, parents = TREE
        return [*found, *score_together(model, [(one, tokens, parents, len(tokens)) for one in made])]

    found = scored_together()
    assert runs[-2:] == [13, 12]
    monkeypatch.setattr(narrow, "_ways", always(narrow._usual))
    for ours, plain in zip(found, scored_together(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["mistral", "phi3", "gemma2", "gemma3", "gpt_neox"])
def test_models_of_other_layers_verify_as_they_did(
    family: str, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model(family)
    found = scored(model)
    assert not runs
    monkeypatch.setattr(narrow, "_ways", always(narrow._usual))
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


class Times(torch.nn.Module):
    """An activation whose only number is whole."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def _swapped(attention: Any) -> None:
    """The same matrices in the same order, keys and values under each other's names."""
    names = {"k_proj": "v_proj", "v_proj": "k_proj"}
    found = {names.get(name, name): part for name, part in attention._modules.items()}
    attention._modules.clear()
    attention._modules.update(found)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "another activation": lambda layer: setattr(layer.mlp, "act_fn", torch.nn.Tanh()),
    "another of its class": lambda layer: setattr(layer.mlp, "act_fn", Times(3)),
    "another epsilon": lambda layer: setattr(layer.input_layernorm, "variance_epsilon", 4.0),
    "another scale": lambda layer: setattr(layer.self_attn, "scaling", 0.9),
    "another matrix": lambda layer: setattr(layer.mlp, "up_proj", torch.nn.Linear(64, 96, bias=False)),
    "written weights": lambda layer: layer.mlp.up_proj.weight.detach().mul_(0.5),
    "a forward of its own": lambda layer: setattr(layer.mlp, "forward", lambda x: 0 * x),
    "fewer layers": lambda layer: setattr(layer.self_attn.config, "num_hidden_layers", 3),
    "matrices change names": lambda layer: _swapped(layer.self_attn),
    "an adapter": lambda layer: setattr(layer.mlp, "up_proj", torch.nn.Sequential(layer.mlp.up_proj, torch.nn.ReLU())),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_two_passes_counts_for_the_second(change: str, runs: list[int]) -> None:
    torch.manual_seed(0)
    model, later = tiny.model("llama"), []
    model.model.layers[1].mlp.act_fn = Times(1)
    targets = [RowTarget(model, 40), RowTarget(model, 40, lean=False)]
    for made in targets:
        made.score(PROMPT, range(-1, len(PROMPT) - 1), 1)
        made.commit(range(len(PROMPT)))
    before = targets[1].score([30], [-1], 1)
    targets[1].rollback()
    assert runs, "the first pass went by the lean layers"
    with torch.no_grad():
        CHANGES[change](model.model.layers[1])
    for made in targets:
        made.score([30], [-1], 1)
        made.rollback()
    for made in reversed(targets):  # the first of these passes compares the roads again
        later.append(made.score([30], [-1], 1))
    torch.testing.assert_close(*later, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(before, later[0], atol=3e-2), "the change shows"


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


@pytest.mark.parametrize("first", [[7] * 9, [7, 8] * 200])
def test_a_first_pass_that_cannot_tell_the_roads_apart_decides_nothing(first: list[int], runs: list[int]) -> None:
    """Of too few different tokens, or of too many rows to be lean: later passes are lean all the same."""
    made = RowTarget(tiny.model("llama", seed=len(first)), 500)
    made.score(first, range(-1, len(first) - 1), 1)
    made.rollback()
    assert runs == []
    for _ in range(2):
        made.score(PROMPT, range(-1, len(PROMPT) - 1), 1)
        made.rollback()
    assert runs[-2:] == [8, 8] and made.products


def test_a_batch_of_many_rows_tries_the_roads_for_what_comes_after_it(runs: list[int]) -> None:
    road = Road(tiny.model("llama", seed=3))
    rows = [3 + i * 7 % 50 for i in range(narrow.MOST + 9)]
    cache = RowTarget(road._model, 400).cache
    with torch.inference_mode():
        assert road.logits(rows, torch.arange(len(rows)), 1, len(rows), cache, {}) is None
    assert road.products and road.may(4) and not road.may(len(rows))
