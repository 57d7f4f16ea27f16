"""kvpress 0.5.5: presses that drop keys and values after the text was read (Devoto et al., arXiv 2510.00636).

As its pipeline does, the context is read and pressed without the question, which follows it; ``aware`` presses the
question with it. ``ratio`` is the share that is dropped. The pipeline's own template gives way to the ids of longctx's
prompt.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from . import _models
from ._serve import Refused

NAME, TORCH = "kvpress", True
REQUIRES = ("kvpress==0.5.5", "transformers==5.2.0")
OPTIONS: dict[str, Any] = {"press": "SnapKV", "ratio": 0.5, "aware": False}
FILES = ()


def load(asked: Mapping[str, Any]) -> Pressed:
    return Pressed(asked)


class Pressed:
    """The package's pipeline with one press."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        import kvpress

        own = asked["options"]
        if not hasattr(kvpress, f"{own['press']}Press"):
            raise Refused(f"kvpress has no {own['press']}Press")
        self._press = getattr(kvpress, f"{own['press']}Press")(compression_ratio=own["ratio"])
        self._aware = own["aware"]
        self._model, tokenizer = _models.load(asked, "sdpa")
        self._pipeline = kvpress.KVPressTextGenerationPipeline(model=self._model, tokenizer=tokenizer)
        self.facts = _models.facts(self._model, "kvpress")

    def check(self, ids: list[int]) -> list[int]:
        return _models.check(self._model, ids)

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        import torch
        from transformers import DynamicCache

        context, rest = asked["context_ids"], [*asked["question_ids"], *asked["after_ids"]]
        if self._aware:
            context, rest = [*context, *asked["question_ids"]], asked["after_ids"]
        cache = DynamicCache()
        started = time.perf_counter()
        with _models.Passes(self._model) as passes, torch.inference_mode():
            ids = {"context_ids": torch.tensor([context]), "questions_ids": [torch.tensor([rest])]}
            found = self._pipeline._forward(ids, asked["max_new_tokens"], self._press, cache)
        kept = self._kept(cache)
        return {
            "text": found[0].strip(),
            "measured": {
                "prompt_tokens": len(context) + len(rest),
                "new_tokens": len(passes.tokens) - 1,
                "kept_tokens": round(kept, 2),
            },
            "unchanged": "no key was dropped" if kept >= len(context) else None,
            "seconds": {
                "prefill": passes.ended[1] - started,
                "decode": time.perf_counter() - passes.ended[1],
            },
        }

    def _kept(self, cache: Any) -> float:
        """Keys that a head reads of the context, in the mean; presses of single heads mask keys and drop none."""
        kept = slots = 0.0
        for layer, own in zip(self._model.model.layers, cache.layers, strict=True):
            heads = own.keys.shape[1]
            masked = getattr(layer.self_attn, "masked_key_indices", None)
            kept += heads * own.keys.shape[2] - (0 if masked is None else len(masked[0]))
            slots += heads
        return kept / slots
