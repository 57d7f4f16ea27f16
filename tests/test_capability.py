"""What a model can verify is found by trying: trees, chains, or single tokens; and a caller's cache is left its own."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tiny
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DynamicCache,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

import longctx
from longctx.backend import capability as module
from longctx.backend.capability import Capability, alone_because, capability, open_target
from longctx.backend.packs import PackCache
from longctx.backend.rows import Rows
from longctx.backend.slots import SlotCache
from longctx.backend.target import RowTarget, StockTarget
from longctx.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")
_SMALL = {"vocab_size": tiny.VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
PROMPT = torch.randint(4, 470, (1, 9), generator=torch.Generator().manual_seed(1)).repeat(1, 3)


def bloom() -> PreTrainedModel:
    """Positions by a bias on the scores, made for a cache of plain order: no attention interface."""
    torch.manual_seed(0)
    return BloomForCausalLM(BloomConfig(vocab_size=tiny.VOCAB, hidden_size=64, n_layer=2, n_head=4)).eval()


def convolution() -> PreTrainedModel:
    """Layers that keep the last few inputs: they can take tokens back, but know no tree."""
    torch.manual_seed(0)
    kinds = ["conv", "full_attention"]
    config = Lfm2Config(**_SMALL, num_key_value_heads=2, num_hidden_layers=2, layer_types=kinds)
    return Lfm2ForCausalLM(config).eval()


def recurrent() -> PreTrainedModel:
    """A state that every token changes and none can be taken out of."""
    torch.manual_seed(0)
    linear = {f"linear_{name}": size for name, size in (("num_value_heads", 4), ("num_key_heads", 2))}
    dims = {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "head_dim": 16}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    kinds = ["linear_attention", "full_attention"]
    config = Qwen3NextConfig(
        **_SMALL, **linear, **dims, **experts, num_key_value_heads=2, num_hidden_layers=2, layer_types=kinds,
        shared_expert_intermediate_size=32,
    )  # fmt: skip
    return Qwen3NextForCausalLM(config).eval()


def states() -> PreTrainedModel:
    """No layer with keys and values at all: its cache does not count tokens."""
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=tiny.VOCAB, hidden_size=64, num_hidden_layers=2)).eval()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_models_verify_trees(family: str, dtype: torch.dtype) -> None:
    assert capability(tiny.model(family, dtype=dtype)) == Capability("tree")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_attention_models_verify_the_rows_of_several_texts_at_once(family: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert alone_because(tiny.model(family, dtype=dtype)) == ""


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3"])
def test_what_the_stock_model_says_of_texts_is_what_it_says_of_each_alone(family: str) -> None:
    model, read = tiny.model(family), list[int]()
    texts = [[5, 6, 7], [5, 6], [9, 8, 7, 6, 5], [5, 6, 7, 4], [9], [5, 6, 7]]
    hook = model.get_input_embeddings().register_forward_hook(lambda module, given, out: read.append(len(given[0])))
    found = module.said_by_stock(model, texts)
    hook.remove()
    with torch.inference_mode():
        alone = torch.stack([model(torch.tensor([text]), use_cache=False).logits[0, -1] for text in texts])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)
    assert read == [2], "beginnings of others are read with them"


def test_models_that_would_mix_texts_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "conv layers" in alone_because(convolution())
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    assert "rotary" in alone_because(tiny.model(rope_parameters=rope))
    parts = PackCache.parts
    monkeypatch.setattr(PackCache, "parts", lambda *given: [(r, q * 2, k, v) for r, q, k, v in parts(*given)])
    assert "says other things" in alone_because(tiny.model())
    monkeypatch.setattr(PackCache, "put", lambda *given: None)
    assert "do not take" in alone_because(tiny.model())


@pytest.mark.parametrize(
    ("make", "rows", "reason"),
    [
        (bloom, "chain", "attention interface"),
        (convolution, "chain", "conv layers"),
        (recurrent, "off", "linear_attention layers.*cannot take tokens back"),
        (states, "off", "linear_attention layers.*cannot take tokens back"),
    ],
)
def test_other_models_decode_as_ever_with_a_warning(make: Any, rows: str, reason: str) -> None:
    model = make()
    options: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 1}
    with torch.inference_mode():
        expected = model.generate(PROMPT, do_sample=False, **options)
    given = options | {"controller": "fixed"}
    out = longctx.generate(model, tiny.tokenizer(), PROMPT, drafters=["document", "recycling"], **given)
    assert torch.equal(out.sequences, expected)
    assert out.stats.rows == rows and (out.stats.drafted > 0) == (rows == "chain")
    (warning,) = out.warnings
    assert re.search(reason, warning)
    assert longctx.generate(model, tiny.tokenizer(), PROMPT, drafters=[], **options).warnings == ()


def test_a_model_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    first = capability(model)
    monkeypatch.setattr(module, "_tried", lambda model: pytest.fail("tried again"))
    assert capability(model) is first


def test_a_model_is_tried_again_when_its_weights_have_changed() -> None:
    model, loaded = tiny.model("llama"), tiny.model("llama").state_dict()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float("nan"))
    assert capability(model).rows != "tree" and alone_because(model)
    model.load_state_dict(loaded)
    assert capability(model).rows == "tree" and alone_because(model) == ""


def without_mask(module: Any, args: Any, given: dict[str, Any]) -> Any:
    """What follows a cache one by one needs no mask; a tree does."""
    return args, {**given, "attention_mask": None}


def test_a_model_is_tried_again_with_the_hooks_it_carries(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("mistral")
    options: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 1}
    assert capability(model).rows == "tree" and alone_because(model) == ""
    hooks = [layer.self_attn.register_forward_pre_hook(without_mask, with_kwargs=True) for layer in model.model.layers]
    with torch.inference_mode():
        expected = model.generate(PROMPT, do_sample=False, **options)
    out = longctx.generate(model, tiny.tokenizer(), PROMPT, drafters=["document"], controller="fixed", **options)
    assert torch.equal(out.sequences, expected)
    found = capability(model)
    assert found.rows != "tree" and alone_because(model) == found.reason and found.reason in out.warnings[0]
    monkeypatch.setattr(module, "_tried", lambda model: pytest.fail("tried again"))
    assert capability(model) is found
    for hook in hooks:
        hook.remove()
    assert capability(model).rows == "tree" and alone_because(model) == ""
    with longctx.kv.compress(model, PROMPT[0].tolist(), policy="full").attached(model):  # hooks of ours
        assert capability(model).rows == "tree"


def test_a_forward_of_its_own_is_a_hook_as_well() -> None:
    model = tiny.model("llama")
    assert capability(model).rows == "tree"
    own = model.model.layers[0].forward
    model.model.layers[0].forward = lambda x, *args, **given: own(x, *args, **{**given, "attention_mask": None})
    assert capability(model).rows != "tree"
    del model.model.layers[0].forward
    assert capability(model).rows == "tree"


def test_a_wrapper_that_hides_what_a_pass_takes_is_refused_with_the_reason() -> None:
    wrapped: Any = torch.compile(tiny.model("llama"), backend="eager")
    with pytest.raises(ModelError, match="OptimizedModule stands around.*give the model itself"):
        StockTarget(wrapped, "chain").score([3, 4], [-1, 0], 1)


def blind_rows(rows: Rows) -> None:
    rows._seen = torch.ones(rows.count, rows.count, dtype=torch.bool).tril() if rows._seen is not None else None


@pytest.mark.parametrize("mistake", ["siblings seen", "wrong rows kept"])
def test_a_tree_or_a_cache_that_goes_wrong_is_noticed(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mistake == "siblings seen":
        made = Rows.__init__

        def init(self: Rows, *args: Any) -> None:
            made(self, *args)
            blind_rows(self)

        monkeypatch.setattr(Rows, "__init__", init)
    else:
        keep = SlotCache.keep
        monkeypatch.setattr(SlotCache, "keep", lambda self, start, rows: keep(self, start, range(len(rows))))
    found = capability(tiny.model("llama"))
    assert found.rows == "chain" and "than of its paths" in found.reason


class Quantised(DynamicCache):
    """As transformers' quantised caches: says it can be cropped."""


def test_a_callers_cache_is_used_and_taken_back_only_where_that_is_safe() -> None:
    model = tiny.model("llama")
    assert (
        type(open_target(model, 9)[0]) is type(open_target(model, 9, DynamicCache(config=model.config))[0]) is RowTarget
    )
    mine = DynamicCache(config=model.config)
    mine._is_user_defined = True  # type: ignore[attr-defined]
    for cache, rows in ((mine, "chain"), (Quantised(config=model.config), "off")):
        target, reason = open_target(model, 9, cache)
        assert type(target) is StockTarget and target.rows == rows and reason
    with torch.inference_mode():
        model(PROMPT[:, :5], past_key_values=mine)
    target, reason = open_target(model, 9, mine)
    assert (target.rows, target.length) == ("chain", 5) and "caller" in reason
