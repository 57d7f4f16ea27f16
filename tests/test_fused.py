"""Layers by the kernel, a call or two each: the model's own numbers, for the models and rows that it is made for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from machines import needed, threads
from targets import PROMPT, TREE, scored

from longctx.backend import fused, narrow
from longctx.backend import lean as lean_layers
from longctx.backend.anatomy import is_silu
from longctx.backend.attention import StopReading, Tap
from longctx.backend.caches import CaptureCache
from longctx.backend.fused import COUNTS, MOST, Fused
from longctx.backend.lean import Lean
from longctx.backend.passes import Passes
from longctx.backend.target import RowTarget

pytestmark = pytest.mark.usefixtures("two_threads")
WIDE = {"hidden_size": 128, "intermediate_size": 160, "head_dim": 32}
BIASED = {"attention_bias": True, "mlp_bias": True}
KINDS = [("llama", {}), ("llama", BIASED), ("llama", {"hidden_act": "gelu"}), ("qwen2", {}), ("qwen3", {})]


def model_of(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    return tiny.model(family, "sdpa", dtype, **(WIDE | changes))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The kernel is always the faster way, for the rows that it is for; the rows of each pass by it."""
    taken: list[int] = []
    ours = Fused.run
    monkeypatch.setattr(Fused, "wins", lambda self, rows: self.suits and 0 < rows <= MOST)

    def noted(self: Fused, x: torch.Tensor, *more: Any) -> torch.Tensor:
        taken.append(x.shape[0] * x.shape[1])
        return ours(self, x, *more)

    monkeypatch.setattr(Fused, "run", noted)
    return taken


def expected(model: Any) -> list[torch.Tensor]:
    """The same by the model itself, which is shown every path as a text."""

    def last(*more: int) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = model(torch.tensor([[*PROMPT, *more]])).logits
        return logits[0, -1]

    tokens, parents = TREE
    paths: list[list[int]] = []
    for token, parent in zip(tokens, parents, strict=True):
        paths.append([*(paths[parent] if parent >= 0 else []), token])
    return [last()[None], torch.stack([last(*path) for path in paths]), last(30, 34, 35, 36)[None]]


@needed
@pytest.mark.parametrize(("family", "changes"), KINDS)
def test_prompts_trees_and_tokens_have_the_models_own_numbers(
    family: str, changes: dict[str, Any], runs: list[int]
) -> None:
    found = scored(model_of(family, **changes))
    for one, other in zip(found, expected(model_of(family, **changes)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert runs[-3:] == [len(PROMPT), len(TREE[0]), 1]


@needed
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_in_formats_of_16_bits_they_are_nearer_the_truth_than_the_models_own(
    family: str, dtype: torch.dtype, runs: list[int]
) -> None:
    truth = expected(model_of(family, dtype).float())

    def off(found: list[torch.Tensor]) -> float:
        return max(float((a.float() - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True))

    assert off(scored(model_of(family, dtype))) < 0.8 * off(expected(model_of(family, dtype)))
    assert runs[-1] == 1


def states(lean: Lean, ids: torch.Tensor, by_kernel: bool) -> list[torch.Tensor]:
    """Keys, values and logits of a pass over several texts."""
    cache = CaptureCache(len(lean.layers), lean.head.weight.dtype)
    every, tap = list(range(ids.shape[1])), Tap({}, slice(0, 0), lambda *_: None)
    with torch.inference_mode():
        logits = lean.run(ids, cache, tap, every, None, None, dtype=lean.head.weight.dtype, fused=by_kernel)
    kept = [cache.cut(row, ids.shape[1], len(lean.layers)) for row in range(len(ids))]
    return [state for one in kept for state in (*one.keys, *one.values)] + [logits]


@needed
def test_texts_side_by_side_keep_what_is_theirs() -> None:
    lean, ids = Lean(model_of("qwen3")), torch.tensor([[7, 300, 41, 5], [9, 12, 401, 33], [8, 8, 64, 2]])
    for one, other in zip(states(lean, ids, True), states(lean, ids, False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@needed
def test_weights_that_move_behind_the_models_back_are_read_where_they_are(runs: list[int]) -> None:
    """And those that come to be of another shape or order go the other way, or fail there."""
    model = model_of("llama")
    target = RowTarget(model, 40)

    def said() -> torch.Tensor:
        found = target.score(PROMPT, range(-1, len(PROMPT) - 1), 1)
        target.rollback()
        return found

    said()
    part = model.model.layers[2].mlp.down_proj
    part.weight.data = 1.5 * part.weight.data
    fresh = model_of("llama")
    with torch.no_grad():
        fresh.model.layers[2].mlp.down_proj.weight.mul_(1.5)
    found, before = said(), len(runs)
    torch.testing.assert_close(found, expected(fresh)[0], rtol=1e-4, atol=1e-4)
    part.weight.data = part.weight.data.t().contiguous().t()
    torch.testing.assert_close(said(), expected(fresh)[0], rtol=1e-4, atol=1e-4)
    assert len(runs) == before, "what is not contiguous is nothing for the kernel"
    part.weight.data = part.weight.data[:, :64].contiguous()
    with pytest.raises(RuntimeError):
        said()


def narrower(model: Any) -> None:
    part = model.model.layers[1].mlp
    for name in ("gate_proj", "up_proj"):
        setattr(part, name, torch.nn.Linear(128, 96, bias=False))
    part.down_proj = torch.nn.Linear(96, 128, bias=False)


def wider_norm(model: Any) -> None:
    model.model.layers[3].input_layernorm.weight = torch.nn.Parameter(torch.ones(128, dtype=torch.float64))


@needed
@pytest.mark.parametrize(
    ("changes", "change"),
    [({}, narrower), ({}, wider_norm), ({"head_dim": 8}, None), ({"intermediate_size": 100}, None)],
)
def test_layers_unlike_one_another_and_sizes_that_are_no_whole_vectors_are_none_for_it(
    changes: dict[str, Any], change: Callable[[Any], None] | None, runs: list[int]
) -> None:
    model = model_of("llama", **changes)
    if change is not None:
        change(model)
    lean = Lean(model)
    assert not lean.fused.suits and not lean.fused.wins(1) and not lean.fused.fit()


def sparse(model: Any) -> None:
    part = model.model.layers[1].mlp.up_proj
    part.weight = torch.nn.Parameter(part.weight.detach().to_sparse_csr(), requires_grad=False)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_parts_that_have_no_numbers_in_a_row_and_models_without_layers_are_none_for_it() -> None:
    model = model_of("llama")
    sparse(model)
    for one in (Lean(model).fused, Fused([])):
        assert not one.suits and not one.wins(1) and not one.fit()


def longer(layer: Any) -> None:
    layer.input_layernorm.weight.data = torch.ones(256)


def shorter(layer: Any) -> None:
    layer.self_attn.q_proj.bias.data = layer.self_attn.q_proj.bias.data[:8].clone()


def pruned(layer: Any) -> None:
    for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
        part.weight.data = part.weight.data[:64].clone()


def cut(layer: Any) -> None:
    layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight.data[:, :64].clone()


def grouped(layer: Any) -> None:
    layer.self_attn.v_proj.weight.data = layer.self_attn.v_proj.weight.data[:32].clone()


@needed
@pytest.mark.parametrize("change", [longer, shorter, pruned, cut, grouped])
def test_sizes_that_do_not_go_with_one_another_are_never_pointed_to(
    change: Callable[[Any], None], runs: list[int]
) -> None:
    """Written through ``.data``, into every layer, which the stamp of a model does not notice."""
    model = model_of("llama", **BIASED)
    lean = Lean(model)
    assert lean.fused.suits and lean.fused.fit()
    for layer in model.model.layers:
        change(layer)
    assert not lean.fused.fit() and not lean.fused.wins(1) and not Fused(lean.layers).suits


@needed
def test_a_pass_that_ends_in_the_middle_leaves_nothing_behind(runs: list[int]) -> None:
    lean, ids = Lean(model_of("qwen2")), torch.tensor([[7, 300, 41, 5]])
    whole = states(lean, ids, True)

    class Stopped(CaptureCache):
        def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *more: Any) -> Any:
            if layer == 2:
                raise StopReading
            return super().update(keys, values, layer, *more)

    tap = Tap({}, slice(0, 0), lambda *_: None)
    with torch.inference_mode(), pytest.raises(StopReading):
        lean.run(torch.tensor([[9, 12, 401, 33]]), Stopped(4, torch.float32), tap, [3], None, None, fused=True)
    for one, other in zip(states(lean, ids, True), whole, strict=True):
        assert torch.equal(one, other)


@needed
def test_threads_may_become_more_or_fewer_between_passes() -> None:
    lean, ids = Lean(model_of("llama")), torch.tensor([[7, 300, 41, 5]])
    whole = states(lean, ids, False)
    for count in (3, 1, 2):
        with threads(count):
            for one, other in zip(states(lean, ids, True), whole, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@needed
@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_no_step_begins_before_what_it_reads_is_made(family: str, gates: bool) -> None:
    """Of steps that are not waited for, none reads or writes what another one writes, nor writes what it reads."""
    kinds = {
        "norm": 3,
        "product": 3,
        "gate": 2,
        "pack": 1,
        "turn": None,
        "lay": None,
    }  # which of a step's tensors it writes
    met: list[int] = []

    class Noted:
        """Steps by the places that they read and write since all threads met."""

        def __init__(self, *given: Any) -> None:
            self.read, self.written, self.packed = set[int](), set[int](), dict[int, int]()

        def __getattr__(self, name: str) -> Callable[..., int]:
            def step(*given: Any, **more: Any) -> int:
                into = kinds[name]
                written = set[int]() if into is None else {given[into].data_ptr()}
                read = {one.data_ptr() for one in (given[:2] if name == "gate" else given[:1])}
                read |= {self.packed[place] for place in read if name == "product"}
                assert not (read | written) & self.written and not written & (self.read - read), name
                self.read, self.written = self.read | read, self.written | written
                if name == "pack":  # all wait for it
                    self.packed = {given[0].data_ptr(): given[1].data_ptr()}
                    self.read, self.written = set(), set()
                return 0

            return step

        def wait(self) -> None:
            met.append(1)
            self.read, self.written = set(), set()

    lean = Lean(model_of(family))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused.steps, "Steps", Noted)
        patch.setattr(fused.steps, "packed", lambda dtype, rows, width: 4 * rows * width)
        fused._Room(lean.layers, torch.float32, (96, 128, 160), fused._Memory(), (1, 3), gates)
    assert len(met) == len(lean.layers) * (5 + 2 * gates + (family == "qwen3"))


def test_silu_is_told_by_its_numbers() -> None:
    acts = [layer.act for family in ("llama", "qwen3") for layer in Lean(model_of(family)).layers]
    assert all(is_silu(act) for act in acts) and is_silu(torch.nn.SiLU())
    others = (torch.nn.GELU(), torch.nn.ReLU(), torch.nn.PReLU().bfloat16(), lambda x: torch.nn.functional.silu(x) * 2)
    assert not any(is_silu(act) for act in others)


@needed
@pytest.mark.parametrize(("act", "calls"), [("silu", 0), ("gelu", 1)])
def test_a_layer_is_one_call_where_its_gate_is_known(act: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lean, ids, ran = Lean(model_of("llama", hidden_act=act)), torch.tensor([[7, 300, 41, 5]]), list[int]()
    run = fused.steps.Steps.run
    monkeypatch.setattr(fused.steps.Steps, "run", lambda self: ran.append(1) or run(self))
    monkeypatch.setattr(lean_layers, "product", torch.nn.functional.linear)  # the head's: by this kernel if it won
    states(lean, ids, True)
    assert len(ran) == len(lean.layers) * (1 + calls) + 1


@needed
def test_a_kernel_that_computes_something_else_is_found_out_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(model_of("llama"), range(3, 40))
    ours = fused._Room.enter

    def less(self: Any, index: int) -> tuple[torch.Tensor, ...]:
        q, k, v = ours(self, index)
        return q, k, 0.99 * v

    monkeypatch.setattr(fused._Room, "enter", less)
    with torch.inference_mode():
        assert passes.lean(400) is None and "something else" in passes.why_not


@needed
def test_few_rows_are_compared_too_where_they_are_multiplied_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(model_of("llama"), range(3, 40))
    ours = Fused.run

    def wrong(self: Fused, x: torch.Tensor, *more: Any) -> torch.Tensor:
        found = ours(self, x, *more)
        return found if x.shape[1] > 1 else found.flip(-1)

    monkeypatch.setattr(Fused, "run", wrong)
    with torch.inference_mode():
        assert passes.lean(400) is None and "something else" in passes.why_not


@pytest.mark.parametrize(("dtype", "tries"), [(torch.bfloat16, 3), (torch.float32, 1)])
def test_where_rounding_may_lead_far_other_tokens_are_shown_before_a_road_is_refused(
    dtype: torch.dtype, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[int]] = []

    def apart(far_from: int) -> Callable[..., str]:
        return lambda self, lean, sample: shown.append(sample) or ("far" if len(shown) <= far_from else "")

    sample = list(range(3, 40))
    for far_from, allowed in ((tries - 1, True), (tries, False)):
        shown.clear()
        monkeypatch.setattr(Passes, "_apart", apart(far_from))
        assert (Passes(model_of("llama", dtype), sample).lean(400) is not None) == allowed
        assert len(shown) == tries and all(sorted(one) == sample for one in shown)
        assert len({one[0] for one in shown}) == tries, "each begins elsewhere"


@needed
def test_it_is_taken_for_the_rows_that_it_multiplies_in_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandth of a second a row of the usual way, and as much as four rows for any by the kernel."""
    lean = Lean(model_of("llama"))
    every = sum(one.weight.numel() for layer in lean.layers for one in layer.linear.values())
    for place in (narrow, lean_layers):
        monkeypatch.setattr(place, "seconds", lambda rows, weight: rows * weight.numel() / 1e3)
    monkeypatch.setattr(fused, "_trial", lambda dtype, out, width, threads: [4 * out * width / 1e3] * len(COUNTS))
    assert [lean.fused.wins(rows) for rows in (0, 1, 4, 5, MOST, MOST + 1)] == [False, False, False, True, True, False]
    assert lean.fused.seconds(8) == pytest.approx(4 * every / 1e3)
    head = lean.head.weight.numel()
    assert lean.products()[8] == pytest.approx((4 * every + 8 * head) / 1e3)
    assert lean.products()[4] == pytest.approx((4 * every + 4 * head) / 1e3)
    assert lean.products()[48] == pytest.approx(48 * (every + head) / 1e3)


@needed
def test_what_is_tried_is_kept_by_the_shape_and_understood_again() -> None:
    found = fused._tried(torch.bfloat16, 16, 64)
    assert fused._understood(found) == found and len(found) == len(COUNTS) and min(found) > 0
    with pytest.raises(ValueError, match="the rows are others"):
        fused._understood(found[1:])
