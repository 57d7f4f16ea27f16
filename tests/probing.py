"""A probe of a tiny model, texts for it, and the eager forward that says what it has to find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tiny
import torch

from longctx.backend.probe import Probe
from longctx.backend.tokens import Tokens
from longctx.types import Inquiry

EXACT = 1e-4
LENGTHS = (17, 40, 12, 3)
QUESTION = "Where does the street winter letter go?"


def tokens() -> Tokens:
    return Tokens(tiny.tokenizer("system"))


def probe_of(model: Any) -> Probe:
    return Probe(model, tokens(), "tiny")


def segments(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 470, n).tolist() for n in lengths]


def stored_by(probe: Probe, texts: Sequence[Sequence[int]], depth: int | None = None) -> list[Any]:
    found = dict(probe.read(texts, depth))
    return [found[i] for i in range(len(texts))]


class Fresh:
    """What one eager forward over [prefix + segment + question] says: the definition of right."""

    def __init__(self, model: Any, prefix: Sequence[int], segment: Sequence[int], inquiry: Inquiry) -> None:
        ids = torch.tensor([[*prefix, *segment, *inquiry.ids]])
        with torch.inference_mode():
            out = model(ids, output_attentions=True)
        self.start = len(prefix) + len(segment)
        self.prefix, self.inquiry, self.ids = len(prefix), inquiry, ids[0]
        self.maps = torch.stack([layer[0] for layer in out.attentions]).float()  # [layers, heads, tokens, tokens]
        self.laws = out.logits[0].float().log_softmax(-1)

    @property
    def rows(self) -> np.ndarray:
        """[layers * heads, rows, tokens]"""
        first, last = self.inquiry.rows
        return self.maps[:, :, self.start + first : self.start + last].flatten(0, 1).numpy()

    @property
    def attention(self) -> np.ndarray:
        return self.rows.mean(1)[:, self.prefix : self.start]

    @property
    def likelihood(self) -> np.ndarray:
        first, last = self.inquiry.question
        at = torch.arange(self.start + first, self.start + last)
        return self.laws[at - 1, self.ids[at]].numpy()

    @property
    def next_token(self) -> np.ndarray:
        return self.laws[-1].numpy()


def check(reading: Any, fresh: Fresh, tolerance: float = EXACT) -> None:
    np.testing.assert_allclose(reading.attention, fresh.attention, atol=tolerance, rtol=0)
    np.testing.assert_allclose(reading.likelihood, fresh.likelihood, atol=tolerance * 10, rtol=0)
    np.testing.assert_allclose(reading.next_token, fresh.next_token, atol=tolerance * 10, rtol=0)


def layers_of(model: Any) -> Any:
    return model.gpt_neox.layers if hasattr(model, "gpt_neox") else model.model.layers
