"""Attention in parts: rows over a long prefix and over one another, each with the log of its denominator, then merged.

The one place where partial attentions are computed and joined. With l the log of the sum of exponentials of the scores
over a part's keys, the joint output is the mean of the parts' outputs weighted by exp(l). Queries that share a KV head
are rows beside each other, so keys and values are never repeated. Knows no cache and no tree.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from longctx.backend import quick

_BLOCK = 1 << 24  # scores held at once where no kernel gives the log of the denominator


class Part(NamedTuple):
    """What rows see in some of the keys."""

    out: Tensor  # float32 [batch, kv_heads, rows, dim]
    log: Tensor  # float32 [batch, kv_heads, rows], the log of the softmax's denominator; -inf where nothing is seen


def part(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None, softcap: float | None = None
) -> Part:
    """Attention of rows [batch, kv_heads, rows, dim] over keys and values [batch, kv_heads, keys, dim].

    ``mask``: bool, true where a row sees a key, [rows, keys] or with batch and kv_heads in front; None: all see all.
    A row that sees nothing has a logarithm so low that it counts for nothing.
    """
    if not key.shape[2]:  # the kernels divide by the number of keys
        out = query.new_zeros(*query.shape[:3], value.shape[-1], dtype=torch.float32)
        return Part(out, torch.full_like(out[..., 0], torch.finfo(torch.float32).min))
    plain = mask is None and softcap is None
    if plain and (found := quick.over(query, key, value, scale)) is not None:
        return Part(*found)
    if query.device.type == "cpu" and value.shape[-1] == query.shape[-1] and softcap is None:
        bias = None if mask is None else _bias(mask, query.dtype)
        out, log = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=bias, scale=scale
        )
        return Part(out.float(), log)
    fused = plain and _flashes(query.device)
    if fused and query.element_size() == 2 and query.shape[-1] == value.shape[-1] <= 256 and not query.shape[-1] % 8:
        out, log = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False, scale=scale)[:2]
        return Part(out.float(), log[..., : query.shape[2]])
    step = max(1, _BLOCK // max(1, query.shape[1] * key.shape[2]))
    blocks = []
    for at in range(0, query.shape[2], step):
        seen = mask if mask is None or mask.shape[-2] == 1 else mask[..., at : at + step, :]
        blocks.append(_explicit(query[:, :, at : at + step], key, value, scale, seen, softcap))
    return Part(torch.cat([block.out for block in blocks], 2), torch.cat([block.log for block in blocks], 2))


def causal_part(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Part:
    """Row i of [batch, heads, rows, dim] over the first i + 1 of as many keys; the result is folded as by ``fold``."""
    kv_heads, count = key.shape[1], query.shape[2]
    groups = query.shape[1] // kv_heads
    if query.device.type == "cpu" and value.shape[-1] == query.shape[-1]:
        out, log = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True, scale=scale)
        return Part(fold(out.float(), kv_heads), log.reshape(len(log), kv_heads, -1))
    mask = torch.ones(count, count, dtype=torch.bool, device=query.device).tril_()
    return part(fold(query, kv_heads), key, value, scale, mask.repeat(groups, 1))


def merge(parts: list[Part]) -> Tensor:
    """The attention over the keys of all ``parts`` together, float32 [batch, kv_heads, rows, dim]."""
    weights = torch.stack([p.log for p in parts]).softmax(0).unsqueeze(-1)
    out = parts[0].out * weights[0]
    for one, weight in zip(parts[1:], weights[1:], strict=True):
        out = torch.addcmul(out, one.out, weight)
    return out


def fold(query: Tensor, kv_heads: int) -> Tensor:
    """[batch, heads, rows, dim] as [batch, kv_heads, heads // kv_heads * rows, dim]."""
    batch, heads, rows, dim = query.shape
    return query.reshape(batch, kv_heads, heads // kv_heads * rows, dim)


def with_sinks(one: Part, sinks: Tensor, kv_heads: int, rows: int) -> Part:
    """A part with the ``sinks`` [heads] in the denominator; they say nothing."""
    per_row = sinks.float().view(1, kv_heads, -1, 1).expand(-1, -1, -1, rows).reshape(1, kv_heads, -1)
    log = torch.logaddexp(one.log, per_row)
    return Part(one.out * (one.log - log).exp().unsqueeze(-1), log)


def finite(states: Tensor) -> bool:
    """Whether all are numbers."""
    # a sum is no number where any is none, and may be none of large ones
    return math.isfinite(states.sum()) or not states.numel() or math.isfinite(states.abs().amax())


def _explicit(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None, softcap: float | None
) -> Part:
    scores = capped((query.float() @ key.float().transpose(-1, -2)) * scale, softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return Part(scores.softmax(-1) @ value.float(), scores.logsumexp(-1))


@functools.cache  # a fact about a device
def _flashes(device: torch.device) -> bool:
    """Whether PyTorch's flash attention runs there: on cards from Ampere on, and calling it on others is an error."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    # not -inf: of a row that sees nothing the kernel then gives 0 as the log of the denominator
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
