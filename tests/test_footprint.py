"""What a model's cache is said to take for a token, against what one takes, and what the trace says of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import pytest
import tiny
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DynamicCache,
    FalconConfig,
    Gemma3nTextConfig,
    GPTBigCodeConfig,
    PreTrainedModel,
)

import longctx
from longctx.backend.borrowed import size
from longctx.backend.footprint import bytes_per_token, measured, sliding
from longctx.backend.report import report
from longctx.backend.target import RowTarget, StockTarget
from longctx.kernels import few_queries, few_rows
from longctx.types import Answer

pytestmark = pytest.mark.usefixtures("one_thread")
_SMALL: dict[str, Any] = {
    "vocab_size": tiny.VOCAB, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 4096, "intermediate_size": 96, "pad_token_id": 1,
}  # fmt: skip
DOC = longctx.Document.from_text(" ".join(f"The room code of street {n} is {n * 37 % 101}." for n in range(150)))


def latents() -> PreTrainedModel:
    sizes = {"kv_lora_rank": 20, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 8, "q_lora_rank": 24}
    heads = {"num_key_value_heads": 4, "first_k_dense_replace": 4}
    return AutoModelForCausalLM.from_config(DeepseekV3Config(**_SMALL, **sizes, **heads)).eval()


def sharing() -> PreTrainedModel:
    """The last two of its layers keep nothing of their own."""
    sizes = {"num_kv_shared_layers": 2, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 16}
    return AutoModelForCausalLM.from_config(Gemma3nTextConfig(**_SMALL, **sizes)).eval()


def falcon(**changes: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(FalconConfig(**_SMALL, **changes)).eval()


def big_code() -> PreTrainedModel:
    config = GPTBigCodeConfig(vocab_size=tiny.VOCAB, n_embd=64, n_layer=4, n_head=4, pad_token_id=1)
    return AutoModelForCausalLM.from_config(config).eval()


MODELS = {family: lambda family=family: tiny.model(family) for family in tiny.FAMILIES}
MODELS |= {"hybrid": tiny.hybrid, "latents": latents, "sharing": sharing, "falcon": falcon, "big code": big_code}
MODELS["newer falcon"] = lambda: falcon(new_decoder_architecture=True, num_kv_heads=2)


def filled(model: PreTrainedModel, tokens: int) -> int:
    """Bytes of a cache of transformers that holds so many tokens, by its own layers."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.arange(4, 4 + tokens)[None], past_key_values=cache, use_cache=True)
    return size(cache)


@pytest.mark.parametrize("name", MODELS)
def test_a_token_takes_what_it_is_said_to_take(name: str) -> None:
    model = MODELS[name]()
    inside, window = sliding(model)
    assert filled(model, 6) - filled(model, 5) == bytes_per_token(model) >= inside
    if window:
        assert (
            filled(model, window + 9) - filled(model, window + 8) == bytes_per_token(model) - inside < filled(model, 1)
        )


@pytest.mark.parametrize("name", ["MiMoV2Flash", "InklingText", "Llama", "Gemma4Text", "DeepseekV3", "Jamba", "GptOss"])
def test_a_report_measures_what_configurations_do_not_say(name: str) -> None:
    """MiMo's values are narrower than its keys, and Inkling caches the keys of all heads."""
    model = architectures.small(name).to(torch.bfloat16)
    grown = filled(model, 2) - filled(model, 1)
    assert measured(model.to("meta"))[0] == grown


@pytest.mark.parametrize(
    "name", ["Gemma3nText", "Gemma4Text", "MiMoV2Flash", "DeepseekV3", "Jamba", "Falcon", "GptOss"]
)
def test_a_report_is_made_of_layers_that_are_not_alike(name: str, tmp_path: Path) -> None:
    model = architectures.small(name)
    model.config.save_pretrained(tmp_path)
    tiny.tokenizer("system").save_pretrained(tmp_path)
    found = report(str(tmp_path))
    assert found.kv_bytes_per_token > 0 and found.intermediate > 0 and found.head_dim >= 8
    assert found.sliding_bytes_per_token <= found.kv_bytes_per_token
    assert found.abilities["answers with citations"] == ""


@pytest.mark.parametrize(("kernel", "what"), [(few_rows, "decodes"), (few_queries, "attends to long texts")])
def test_a_report_says_whether_a_kernel_serves_and_why_not(
    kernel: Any, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.model("llama").save_pretrained(tmp_path)
    tiny.tokenizer("system").save_pretrained(tmp_path)
    for compiler, why in (("llvmlite 1", ""), ("", "llvmlite does not work here")):
        monkeypatch.setattr(kernel, "version", lambda dtype, width, compiler=compiler: compiler)
        said = report(str(tmp_path)).abilities[f"{what} by a compiled kernel (faster)"]
        assert said.startswith(why) and bool(said) == bool(why)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_target_counts_its_buffers(family: str) -> None:
    model = tiny.model(family)
    whole, inside = bytes_per_token(model), sliding(model)[0]
    rows, stock = RowTarget(model, 50), StockTarget(model, "chain")
    for target in (rows, stock):
        assert target.cache_bytes < 100
        target.score(range(4, 44), range(-1, 39), 1)
        target.commit(range(40))
    assert rows.cache_bytes == 50 * whole  # the reserve included, which is shorter than two windows and a pass
    window = sliding(model)[1] or 1
    assert stock.cache_bytes == pytest.approx(40 * (whole - inside) + (window - 1) * inside, abs=100)


def facts(answer: Answer, name: str) -> Any:
    return next(step.facts for step in answer.trace if step.name == name)


def test_a_trace_tells_what_memory_holds() -> None:
    reader = longctx.Reader(tiny.model(), tiny.tokenizer("system"), encoder=None, calibration=None)
    each, asked = bytes_per_token(reader.model), {"budget_tokens": 200, "max_new_tokens": 6}
    read = reader.ask(DOC, "Which code has street 7?", selector="infiniretri", **asked)
    tokens = read.usage["document_tokens"]
    assert facts(read, "compile")["bytes"] == 4 * tokens
    assert (
        facts(read, "select")["bytes"] == (4 + each * 3 // 4) * tokens
    )  # it needs no layer behind the one it looks at
    again = reader.ask(reader.compile(DOC), "Which code has street 9?", selector="bm25", **asked)
    assert facts(again, "compile")["bytes"] == facts(again, "select")["bytes"] == (4 + each) * tokens
    # the last token of an answer is in no cache; slots for drafts are made beforehand
    least = (again.usage["prompt_tokens"] + 5) * each
    assert least <= facts(again, "decode")["bytes"] <= least + 400 * each


def test_a_context_that_is_kept_counts_once_for_an_answer() -> None:
    reader = longctx.Reader(tiny.model(), tiny.tokenizer("system"), encoder=None, calibration=None)
    answer = reader.ask(DOC, "Which code has street 7?", selector="all", kv="full", max_new_tokens=6)
    each, tokens = bytes_per_token(reader.model), answer.usage["prompt_tokens"]
    assert tokens * each <= facts(answer, "decode")["bytes"] <= (tokens + 600) * each


def test_generated_sequences_add_their_caches() -> None:
    model, each = tiny.model(), bytes_per_token(tiny.model())
    one = longctx.generate(model, tiny.tokenizer(), torch.arange(4, 44)[None], drafters=[], max_new_tokens=5)
    two = longctx.generate(model, tiny.tokenizer(), torch.arange(4, 84).view(2, 40), drafters=[], max_new_tokens=5)
    assert one.stats.cache_bytes >= 44 * each and two.stats.cache_bytes == 2 * one.stats.cache_bytes
    assert two.as_dict()["stats"]["cache_bytes"] == two.stats.cache_bytes
