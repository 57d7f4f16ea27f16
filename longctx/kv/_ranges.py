"""Ragged choices as padded tensors: ranges of slots, one list per row of a batch and KV head.

Owns the arithmetic only. No loop over clusters: a choice is made in every layer of every pass.
"""

from __future__ import annotations

import torch
from torch import Tensor


def members(taken: Tensor, starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The slots of the ranges that are ``taken`` [batch, kv_heads, ranges], in ascending ranges.

    ``starts`` and ``lengths`` are long [batch or 1, kv_heads, ranges]. Returns slots long [batch, kv_heads, most] and
    how many of them are real, the first ones, long [batch, kv_heads]; the others are slot 0.
    """
    length = lengths.masked_fill(~taken, 0)
    stops = length.cumsum(-1)
    counts = stops[..., -1:]
    most = int(counts.max())
    column = torch.arange(most, device=taken.device)
    # a slot belongs to the range behind all those that ended before it
    ended = stops.new_zeros(*taken.shape[:2], most + 1).scatter_add_(-1, stops, torch.ones_like(stops))
    which = ended[..., :most].cumsum(-1).clamp_max_(taken.shape[-1] - 1)
    return ((starts - stops + length).gather(-1, which) + column).masked_fill_(column >= counts, 0), counts[..., 0]


def behind(forced: Tensor, slots: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """``forced`` slots [forced] in front of everyone's choice, and how many there are with them."""
    return torch.cat((forced.expand(*slots.shape[:2], -1), slots), 2), counts + len(forced)


def ends(slots: int, sinks: int, recent: int, device: torch.device) -> Tensor:
    """The first ``sinks`` and the last ``recent`` of some slots."""
    return torch.cat((torch.arange(sinks, device=device), torch.arange(slots - recent, slots, device=device)))


def at_ends(states: Tensor, sinks: int, recent: int) -> Tensor:
    """``states`` [kv_heads, slots, dim] at these."""
    return torch.cat((states[:, :sinks], states[:, states.shape[1] - recent :]), 1)


def best(scores: Tensor, count: int, sinks: int, recent: int) -> Tensor:
    """The first ``sinks``, the last ``recent`` and the best others, ``count`` slots in all and in ascending order.

    ``scores`` [..., slots]; equal scores: the earlier slot.
    """
    forced = scores.clone()
    forced[..., :sinks] = torch.inf
    forced[..., scores.shape[-1] - recent :] = torch.inf
    return forced.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(-1).values
