"""Models whose cache holds latents, of which the keys of all heads are made: what is refused, and what goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, DeepseekV3Config

import longctx
from longctx.backend.compressing import possible
from longctx.errors import ModelError

DOC = longctx.Document.from_text(" ".join(f"The room code of street {n} is {n * 37 % 101}." for n in range(60)))


@pytest.fixture
def model() -> Any:
    """A DeepSeek-V3 in small, whose latents have the sizes that keys and values would have: nothing else would show."""
    torch.manual_seed(3)
    sizes = {"kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 8, "q_lora_rank": 24}
    base = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 4}
    widths = {"vocab_size": tiny.VOCAB, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 4096}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "initializer_range": 0.3}
    return AutoModelForCausalLM.from_config(DeepseekV3Config(**base, **widths, **sizes, **ends)).eval()


def test_their_layers_cannot_be_compressed_and_are_named(model: Any) -> None:
    assert possible(model) == {"not possible: latent_attention": [0, 1, 2, 3]}
    with pytest.raises(ModelError, match=r"0 \(latent_attention\), 1 .*Ask without kv="):
        longctx.kv.compress(model, torch.tensor([list(range(4, 300))]), "full")


def test_they_are_read_with_and_calibrated_all_the_same(model: Any) -> None:
    reader = longctx.Reader(model, tiny.tokenizer("system"), encoder=None)
    found = reader.select(DOC, "Which code has street 7?", budget_tokens=200)
    (step, _) = found.trace
    assert step.facts["signals"] == ["words", "question likelihood", "attention"]
    assert reader.select(DOC, "Which code has street 7?", budget_tokens=200, selector="infiniretri").spans
    with pytest.raises(ModelError, match="latent_attention"):
        reader.select(DOC, "Which code has street 7?", budget_tokens=200, selector="longheads")


def test_their_segments_are_stored_without_summaries(model: Any, tmp_path: Path) -> None:
    reader = longctx.Reader(model, tiny.tokenizer("system"), encoder=None)
    asked: dict[str, Any] = {"budget_tokens": 200, "selector": "infiniretri"}
    fresh = reader.select(DOC, "Which code has street 7?", **asked)
    for form in ("exact", "int8"):
        stored = reader.compile(DOC, path=tmp_path / form, segment_kv="disk", segment_form=form)
        assert reader.select(stored, "Which code has street 7?", **asked).spans
    loaded = reader.load(tmp_path / "exact")
    again = reader.select(loaded, "Which code has street 7?", **asked)
    assert again.spans == fresh.spans and loaded.spent() < loaded.tokens
    with pytest.raises(ModelError, match="latent_attention"):
        reader.compile(DOC, path=tmp_path / "summaries", segment_kv="summary")


def test_drafts_change_nothing_of_what_they_say(model: Any) -> None:
    ids = torch.tensor([[9, 12, 401, 33, 8, 64, 2] * 6])
    options: dict[str, Any] = {"max_new_tokens": 40, "eos_token_id": None, "pad_token_id": 1}
    out = longctx.generate(model, tiny.tokenizer(), ids, drafters=["recycling"], controller="fixed", **options)
    assert torch.equal(out.sequences, model.generate(ids, do_sample=False, **options)) and out.stats.accepted
