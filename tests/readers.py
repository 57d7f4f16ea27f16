"""Readers in tests: a document with a fact in it, and tiny models to ask."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from transformers import Lfm2Config, Lfm2ForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

from longctx import Document, Reader, plugins

QUESTION = "Where is the kettle of Tobin kept?"
WINDOW = 1024
SELECTORS = [name for name in plugins.names("selectors") if name != "dense"]
BASELINES = [name for name in SELECTORS if plugins.plugin("selectors", name).baseline]
NEEDLE = "Tobin keeps the kettle in room 4711."


def story(sentences: int = 60, needle_at: int = 31) -> str:
    lines = [
        f"In winter number {i} the street by the river was quiet and the report said so." for i in range(sentences)
    ]
    lines[needle_at] = NEEDLE
    return " ".join(lines)


DOCUMENT = Document.from_text(story(), id="story")


def reader_of(family: str = "llama", window: int = WINDOW, template: str = "system", **options: Any) -> Reader:
    model = tiny.model(family, num_hidden_layers=2, max_position_embeddings=window)
    settings: dict[str, Any] = {"encoder": None, "calibration": None, "segment_tokens": 128} | options
    return Reader(model, tiny.tokenizer(template), **settings)


def hybrid() -> PreTrainedModel:
    """A layer that keeps its last inputs below one that keeps keys and values."""
    torch.manual_seed(0)
    small = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    kinds = ["conv", "full_attention"]
    return Lfm2ForCausalLM(Lfm2Config(vocab_size=tiny.VOCAB, num_hidden_layers=2, layer_types=kinds, **small)).eval()


def attentionless() -> PreTrainedModel:
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=tiny.VOCAB, hidden_size=64, num_hidden_layers=2)).eval()


def counted(reader: Reader, text: str) -> int:
    return len(reader.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
