"""The choice of clusters by compiled kernels, for a few rows on a CPU: the same as on tensors, up to rounding.

Owns the order of the steps. What is between products is in float32 here, and which of equally likely clusters are read
may be another. Knows no budget and no rule but one: the likeliest keys first, until it is full.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longctx.kernels import cluster_choice, clusters, few_queries, machine
from longctx.keys import EVERYTHING, Asked, Choice, Index, Unread
from longctx.kv import _ranges

_MOST = 64  # rows of a KV head, up to which this is the quicker way


def choice(index: Index, asked: Asked, sinks: int, recent: int) -> Choice | None:
    """What ``Squeezed`` chooses for its whole budget; None where the kernels cannot be had, or there are many rows."""
    own, rows = index.tensors, asked.rows
    fit = rows.is_cpu and rows.shape[2] <= _MOST and asked.softcap is None
    fit = fit and machine.plain() and not torch.is_grad_enabled()
    if not (fit and clusters.suits(own["means"], own["spreads"]) and cluster_choice.suits(own["says"])):
        return None
    if not few_queries.suits(asked.keys[None], asked.keys[None]):
        return None
    rows = rows.float()
    common = (rows @ own["centre"].transpose(-1, -2)).squeeze(-1).mul_(asked.scale)
    masses = clusters.masses(rows, own["means"], own["spreads"], own["logs"], common, asked.scale)
    forced = _ranges.ends(index.tokens, sinks, recent, rows.device)
    slots = torch.zeros(*rows.shape[:2], index.budget, dtype=torch.long, device=rows.device)
    slots[:, :, : len(forced)] = forced
    weights = rows.new_full((1, 1, rows.shape[2], 1), 1 / rows.shape[2]) if asked.weights is None else asked.weights
    chosen = cluster_choice.choose(
        masses,
        _known(asked, slots[:, :, : len(forced)]),
        weights[..., 0].expand(rows.shape[:3]),
        own["sizes"],
        own["starts"],
        own["says"],
        slots[:, :, len(forced) :],
    )
    if int(chosen.counts.min()) == index.tokens - len(forced):
        return EVERYTHING
    return Choice(slots, chosen.counts + len(forced), Unread(chosen.log, chosen.out, chosen.wide))


def _known(asked: Asked, slots: Tensor) -> Tensor:
    """The logarithm of the mass of some slots, float32 [batch, kv_heads, rows]."""
    keys = asked.keys[None]
    return few_queries.attend(asked.rows, keys, keys, asked.scale, slots)[1]
