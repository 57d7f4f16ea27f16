"""Scores of queries against keys as the model makes them, in float32 and as logarithms throughout."""

from __future__ import annotations

import torch
from torch import Tensor

from longctx.keys import Asked

LOWEST = torch.finfo(torch.float32).min  # not -inf: the mean over nothing must stay a number


def scores(rows: Tensor, keys: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Logits float32 [..., rows, keys]."""
    return capped((rows.float() @ keys.float().transpose(-1, -2)) * scale, softcap)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits as a model with a soft cap has them."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def pooled(shares: Tensor, asked: Asked) -> Tensor:
    """The mean over the rows that choose together, [batch, kv_heads, rows, some] as [batch, kv_heads, some]."""
    return shares.mean(2) if asked.weights is None else (shares * asked.weights).sum(2)


def most(shares: Tensor, asked: Asked) -> Tensor:
    """The largest over the rows that choose together, [batch, kv_heads, rows, some] as [batch, kv_heads, some]."""
    return (shares if asked.weights is None else shares * (asked.weights > 0)).amax(2)


def grouped(queries: Tensor, kv_heads: int) -> Tensor:
    """[heads, rows, dim] as [kv_heads, heads // kv_heads * rows, dim]."""
    heads, rows, dim = queries.shape
    return queries.reshape(kv_heads, heads // kv_heads * rows, dim)


def placed(asked: Asked, place: int) -> Tensor:
    """The queries as if each stood at position ``place``, float32 [batch, kv_heads, groups * rows, dim]."""
    batch, kv_heads, folded, _ = asked.rows.shape
    assert asked.turn is not None
    count = folded // asked.groups
    positions = torch.arange(asked.position - count + 1, asked.position + 1, device=asked.rows.device)
    by = (asked.padding + place - positions.repeat(asked.groups)).expand(batch, kv_heads, -1)
    return asked.turn(asked.rows, by).float()
