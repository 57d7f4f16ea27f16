"""Scores of queries against keys as the model makes them, in float32 and as logarithms throughout."""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST = torch.finfo(torch.float32).min  # not -inf: the mean over nothing must stay a number


def scores(rows: Tensor, keys: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Logits float32 [..., rows, keys]."""
    logits: Tensor = (rows.float() @ keys.float().transpose(-1, -2)) * scale
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def grouped(queries: Tensor, kv_heads: int) -> Tensor:
    """[heads, rows, dim] as [kv_heads, heads // kv_heads * rows, dim]."""
    heads, rows, dim = queries.shape
    return queries.reshape(kv_heads, heads // kv_heads * rows, dim)
