"""The choice of clusters by a compiled kernel, for a few rows on a CPU: the same as on tensors, up to rounding.

Owns when it is taken. What is between products is in float32 here, and which of equally likely clusters are read may be
another. Knows no budget and no rule but one: the likeliest keys first, until it is full.
"""

from __future__ import annotations

import torch

from longctx.kernels import cluster_choice, machine
from longctx.keys import EVERYTHING, Asked, Choice, Index, Unread

_MOST = 64  # rows of a KV head, up to which this is the quicker way


def choice(index: Index, asked: Asked, sinks: int, recent: int) -> Choice | None:
    """What ``Squeezed`` chooses for its whole budget; None where the kernel cannot be had, or there are many rows."""
    if asked.rows.shape[2] > _MOST or asked.softcap is not None or torch.is_grad_enabled() or not machine.plain():
        return None
    own = cluster_choice.Clusters(*(index.tensors[name] for name in cluster_choice.Clusters._fields))
    if not asked.rows.is_cpu or not cluster_choice.suits(own, asked.keys):
        return None
    if asked.weights is not None and not cluster_choice.weighs(asked.weights, *asked.rows.shape[:3]):
        return None
    chosen = cluster_choice.choose(
        asked.rows, asked.keys, own, asked.scale, (sinks, recent), index.budget, asked.weights
    )
    if min(chosen.counts.flatten().tolist()) == index.tokens:
        return EVERYTHING
    return Choice(chosen.slots, chosen.counts, Unread(chosen.log, chosen.out, chosen.wide))
