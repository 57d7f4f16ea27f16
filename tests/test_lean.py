"""The short road through the layers: that it gives the model's own numbers, and which models it is not taken for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, GraniteConfig, Ministral3Config

from longctx.backend import lean
from longctx.backend.anatomy import Unlike
from longctx.backend.attention import Tap
from longctx.backend.caches import CaptureCache, ReplayCache
from longctx.backend.lean import Lean
from longctx.backend.passes import Passes

pytestmark = pytest.mark.usefixtures("two_threads")
IDS = torch.tensor([[7, 300, 41, 5, 220, 99, 18, 77], [9, 12, 401, 33, 8, 8, 64, 2]])


def states(passes: Passes, ids: torch.Tensor = IDS) -> list[torch.Tensor]:
    """Keys and values of every layer and the logits of every token."""
    cache = CaptureCache(4, passes.model.dtype)
    logits = passes.run(ids, cache, Tap({}, slice(0, 0), lambda *_: None), range(ids.shape[1]))
    assert logits is not None
    rows = [cache.cut(row, ids.shape[1], 4) for row in range(len(ids))]
    return [state for row in rows for state in (*row.keys, *row.values)] + [logits]


def own(model: Any, ids: torch.Tensor = IDS) -> list[torch.Tensor]:
    """The same by the model's own eager forward."""
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        out = model(input_ids=ids, use_cache=True)
    layers = out.past_key_values.layers
    return [part[row] for row in range(len(ids)) for part in [x.keys for x in layers] + [x.values for x in layers]] + [
        out.logits
    ]


def check(found: list[torch.Tensor], expected: list[torch.Tensor], atol: float = 1e-4) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=1e-4, atol=atol)


BIASED = {"attention_bias": True, "mlp_bias": True}


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("llama", BIASED), ("qwen2", {}), ("qwen3", {}), ("mistral", {"sliding_window": 4096})],
)
def test_the_short_road_gives_the_models_own_numbers(family: str, changes: dict[str, Any]) -> None:
    passes = Passes(tiny.model(family, "sdpa", **changes), range(3, 40))
    found = states(passes)
    assert passes.why_not == ""
    check(found, own(tiny.model(family, **changes)))


@pytest.mark.parametrize(
    ("family", "reason"),
    [("phi3", "also has"), ("gemma2", "also has"), ("gemma3", "also has"), ("gpt_neox", "has no"), ("mistral", "8")],
)
def test_a_model_of_other_parts_goes_its_own_way_and_says_why(family: str, reason: str) -> None:
    passes = Passes(tiny.model(family), range(3, 40))
    found = states(passes)
    assert reason in passes.why_not
    check(found[-1:], own(tiny.model(family))[-1:])  # stock caches of sliding layers keep the last few keys only


SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim", "max_position_embeddings")  # fmt: skip


def granite(attention: str) -> Any:
    """The same parts, and factors on residuals, attention, embeddings and logits."""
    factors = {"residual_multiplier": 0.8, "attention_multiplier": 0.2, "logits_scaling": 2.0}
    sizes = {"vocab_size": 480, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
    torch.manual_seed(0)
    config = GraniteConfig(
        **sizes, **factors, num_attention_heads=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=1
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def test_the_same_parts_that_compute_something_else_are_found_out() -> None:
    model = granite("sdpa")
    Lean(model)  # its parts alone do not tell
    passes = Passes(model, range(3, 40))
    found = states(passes)
    assert "something else" in passes.why_not
    check(found, own(granite("eager")))


@pytest.mark.parametrize("sample", [[5], [], [4, 5] * 20])
def test_no_road_is_chosen_by_tokens_that_are_alike(sample: Sequence[int]) -> None:
    """Attention over them gives the same, whatever is done to queries and keys; the next text decides."""
    model = tiny.model("llama", "sdpa")
    with torch.inference_mode():
        few = Passes(model, sample)
        assert few.lean(400) is None and "too few to compare" in few.why_not
        assert Passes(model, range(3, 40)).lean(400) is not None and few.lean(400) is not None


def test_parts_that_scale_by_the_position_are_found_out_though_they_begin_alike() -> None:
    """Queries grow beyond the 64th token: no short text from the beginning tells."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 64.0, "original_max_position_embeddings": 64}
    sizes = {name: tiny.config("qwen3").to_dict()[name] for name in SIZES}
    torch.manual_seed(0)
    config = Ministral3Config(**sizes, sliding_window=None, rope_parameters=rope | {"llama_4_scaling_beta": 0.5})
    passes = Passes(AutoModelForCausalLM.from_config(config).eval(), range(3, 40))
    Lean(passes.model)
    with torch.inference_mode():
        assert passes.lean(400) is None and "something else" in passes.why_not


def test_a_change_of_one_factor_in_the_last_layer_is_found_out() -> None:
    model = tiny.model("llama", "sdpa")
    last = model.model.layers[-1].mlp
    kind = type(last)
    last.__class__ = type("Quieter", (kind,), {"forward": lambda self, x: 0.9 * kind.forward(self, x)})
    passes = Passes(model, range(3, 40))
    states(passes)
    assert "something else" in passes.why_not


def test_what_passes_in_a_narrow_format_is_compared_again_in_a_wide_one() -> None:
    model = tiny.model("llama", "sdpa", torch.bfloat16)
    last = model.model.layers[-1].mlp
    kind = type(last)
    last.__class__ = type("Quieter", (kind,), {"forward": lambda self, x: 0.98 * kind.forward(self, x)})
    passes = Passes(model, range(3, 40))
    with torch.inference_mode():
        assert passes.lean(400) is not None, passes.why_not
        model.float()
        assert passes.lean(400) is None and "something else" in passes.why_not


class Adapted(torch.nn.Linear):
    """Adds what is nothing at first."""

    def __init__(self, rows: int, out: int) -> None:
        super().__init__(rows, out, bias=False)
        self.more = torch.nn.Parameter(torch.zeros(out, rows))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.more.T


def test_an_adapter_in_the_head_and_parameters_beside_the_known_parts_are_refused() -> None:
    model = tiny.model("llama", "sdpa")
    head = model.lm_head
    model.lm_head = Adapted(head.in_features, head.out_features)
    with pytest.raises(Unlike, match="no plain linear head"):
        Lean(model)
    model.lm_head = head
    model.model.layers[1].mlp.gate = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(Unlike, match="the MLP has parameters of its own: gate"):
        Lean(model)
    del model.model.layers[1].mlp.gate
    Lean(model)
    del model.model.layers[1].mlp.act_fn
    with pytest.raises(Unlike, match="act_fn"):
        Lean(model)


def test_hooks_and_adapters_that_come_later_are_not_passed_by() -> None:
    model = tiny.model("llama", "sdpa")
    passes = Passes(model, range(3, 40))
    plain = states(passes)
    assert passes.why_not == ""
    handle = model.model.layers[1].mlp.register_forward_hook(lambda module, args, out: 2 * out)
    hooked = states(passes)
    assert "hooks" in passes.why_not and not torch.equal(hooked[-1], plain[-1])
    handle.remove()
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: x
    states(passes)
    assert "forward of their own" in passes.why_not
    del mlp.forward

    class Doubled(torch.nn.Module):
        def __init__(self, base: torch.nn.Linear) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.base(x)

    model.model.layers[1].self_attn.q_proj = Doubled(model.model.layers[1].self_attn.q_proj)
    adapted = states(passes)
    assert "q_proj" in passes.why_not and not torch.equal(adapted[-1], plain[-1])


def test_weights_that_change_between_passes_are_seen() -> None:
    model = tiny.model("llama", "sdpa", torch.bfloat16)
    passes = Passes(model, range(3, 40))
    states(passes)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.mul_(1.5)
    found = states(passes)
    assert passes.why_not == ""
    fresh = tiny.model("llama", dtype=torch.bfloat16)
    with torch.no_grad():
        fresh.model.layers[2].mlp.down_proj.weight.mul_(1.5)
    assert far(found, own(fresh)) < 0.05 < far(found, own(tiny.model("llama", dtype=torch.bfloat16)))


def test_a_factor_that_changes_after_the_comparison_is_seen() -> None:
    model = AutoModelForCausalLM.from_config(GraniteConfig(**tiny.config("llama").to_dict())).eval()
    passes = Passes(model, range(3, 40))
    states(passes)
    assert passes.why_not == ""
    for layer in model.model.layers:
        layer.residual_multiplier = 0.2
    check(states(passes), own(model))
    assert "something else" in passes.why_not


def test_what_was_found_of_weights_that_are_not_loaded_yet_is_not_kept() -> None:
    model, loaded = tiny.model("llama", "sdpa"), tiny.model("llama", "sdpa").state_dict()
    passes = Passes(model, range(3, 40))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float("nan"))
    states(passes)
    assert "distance inf" in passes.why_not
    model.load_state_dict(loaded)
    states(passes)
    assert passes.why_not == ""


def test_memory_that_was_short_once_says_nothing_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(tiny.model("llama", "sdpa"), range(3, 40))

    def short(*args: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(Lean, "run", short)
        states(passes)
        assert "no memory" in passes.why_not
    states(passes)
    assert passes.why_not == ""


def test_layers_that_the_configuration_leaves_out_are_not_run() -> None:
    model = tiny.model("llama", "sdpa")
    model.config.num_hidden_layers = 2
    with pytest.raises(Unlike, match="2 of 4 layers"):
        Lean(model)


def far(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest relative distance of two lists of states."""
    pairs = zip(found, expected, strict=True)
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wider_arithmetic_is_nearer_to_the_truth_and_stores_the_models_own_format(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = tiny.model("qwen2", dtype=dtype).float()
    truth = own(exact)
    rounded = far(own(tiny.model("qwen2", dtype=dtype)), truth)
    monkeypatch.setattr(lean, "arithmetic", lambda dtype, device: torch.float32)
    passes = Passes(tiny.model("qwen2", "sdpa", dtype), range(3, 40))
    found = states(passes)
    assert passes.why_not == ""
    assert all(state.dtype == dtype for state in found)
    assert far(found, truth) < 0.7 * rounded


def test_padded_rows_on_a_filled_cache_equal_rows_of_their_own() -> None:
    """The mask of the short road: slots before a row's first are hidden, later tokens too."""
    model = tiny.model("llama", "sdpa")
    passes = Passes(model, range(3, 40))
    tap = Tap({}, slice(0, 0), lambda *_: None)
    runs = []
    for length in (8, 3):
        cache = CaptureCache(4, model.dtype)
        passes.run(IDS[:1, :length], cache, tap, [0])
        runs.append(cache.cut(0, length, 4))
    replay = ReplayCache([[run] for run in runs])
    new = torch.tensor([[50, 60, 70]]).repeat(2, 1)
    positions = torch.tensor(replay.lengths)[:, None] + torch.arange(3)
    logits = passes.run(new, replay, tap, range(3), positions, replay.valid(3))
    assert logits is not None and passes.why_not == ""
    for row, length in enumerate((8, 3)):
        whole = torch.cat((IDS[:1, :length], new[:1]), 1)
        torch.testing.assert_close(logits[row], own(tiny.model("llama"), whole)[-1][0, -3:], rtol=1e-4, atol=1e-4)


def test_a_wrapper_is_not_looked_through() -> None:
    class Wrapper(torch.nn.Module):
        pass

    with pytest.raises(Unlike, match="Wrapper wraps the model"):
        Lean(Wrapper())  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [False, True])
def test_logits_of_many_rows_are_computed_in_the_wider_format(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of the vocabulary, of which the last is a short one."""
    monkeypatch.setattr(lean, "arithmetic", lambda dtype, device: torch.float32)
    monkeypatch.setattr(lean, "_MANY", 8)
    monkeypatch.setattr(lean, "_WORDS", 100)
    model = tiny.model("llama", "sdpa", torch.bfloat16)
    if bias:
        model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, model.config.vocab_size).bfloat16())
    used = Lean(model)
    rows = torch.randn(9, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = used._logits(rows)
        weight = model.lm_head.weight.double()
        truth = rows.double() @ weight.t() + (model.lm_head.bias.double() if bias else 0.0)
        plain = torch.nn.functional.linear(rows.bfloat16(), model.lm_head.weight, model.lm_head.bias)
    assert found.dtype == torch.bfloat16 and found.shape == truth.shape
    assert float((found - truth).norm()) < 0.9 * float((plain - truth).norm())
