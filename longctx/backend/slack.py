"""How far a policy's estimates of what it leaves out are off, measured on queries whose attention is known in full.

Owns the measurement and its quantile (split conformal prediction). A bound for 95 % of queries is asked for, and those
of a question are like none that can be measured on: the last ones of a context, and those of fragments that are read
again behind it. So the quantile is wider, and the larger of the two counts. An audit says how often the bound held.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longctx.backend.forks import Held
from longctx.backend.parts import capped, part
from longctx.keys import Asked, Choice
from longctx.protocols import KVPolicy

QUERIES = 16  # last queries of a context on which its estimates are measured, before those of what is read behind it
_SURE = 0.985  # of the queries measured on, for 95 % of others
_AT_ONCE = 8  # queries whose attention to all keys is held at once


def slack(policy: KVPolicy, held: Held, queries: Tensor, scale: float, softcap: float | None) -> Tensor | None:
    """What to add to the logarithm of an estimated mass to get a bound on the true one, float32 [kv_heads].

    ``queries`` are [heads, count, dim], each a pass of its own. None where the policy estimates nothing.
    """
    assert held.index is not None
    heads, count, dim = queries.shape
    kv_heads = len(held.keys)
    rows = queries.view(kv_heads, heads // kv_heads, count, dim).permute(2, 0, 1, 3)
    keys = held.keys if _fits(held.keys, softcap) else held.keys.float()  # widened once
    off = []
    for at in range(0, count, _AT_ONCE):
        some = rows[at : at + _AT_ONCE]
        asked = Asked(some, held.keys, scale, softcap, held.index.tokens, held.turn, groups=heads // kv_heads)
        choice = policy.choose(held.index, asked)
        if choice.unread is None or choice.slots is None:
            continue
        left = _left(some, keys, _taken(choice, keys.shape[1]), scale, softcap)
        off.append((left - choice.unread.base).transpose(0, 1).flatten(1))
    if not off:
        return None
    ordered = torch.cat(off, 1).sort(-1).values
    total = ordered.shape[1]
    return ordered[:, min(total, math.ceil(_SURE * (total + 1))) - 1]


def _left(some: Tensor, keys: Tensor, taken: Tensor, scale: float, softcap: float | None) -> Tensor:
    """The logarithm of the mass of keys [kv_heads, slots, dim] that are not ``taken``, [batch, kv_heads, groups]."""
    if _fits(keys, softcap):
        each = keys.expand(len(some), -1, -1, -1)  # its values too: what they say is not asked for
        return part(some.to(keys.dtype), each, each, scale, ~taken[:, :, None]).log.float()
    folded = some.float().transpose(0, 1).flatten(1, 2)  # one product for all: no copies of the keys
    scores = capped((folded @ keys.transpose(-1, -2)).mul_(scale), softcap)
    scores = scores.view(len(keys), len(some), -1, keys.shape[1]).transpose(0, 1)
    return scores.masked_fill_(taken[:, :, None], torch.finfo(scores.dtype).min).logsumexp(-1)


def _fits(keys: Tensor, softcap: float | None) -> bool:
    """Whether a fused kernel takes a mask and says the logarithm; elsewhere ``part`` copies the keys for each query."""
    return keys.device.type == "cpu" and softcap is None


def _taken(choice: Choice, slots: int) -> Tensor:
    """Which of so many slots a choice reads, bool [batch, kv_heads, slots]."""
    assert choice.slots is not None
    taken = choice.slots.new_zeros(*choice.slots.shape[:2], slots)
    read = torch.ones_like(choice.slots) if choice.read is None else choice.read
    return taken.scatter_add_(2, choice.slots, read.to(taken.dtype)) > 0
