"""Attention of some rows over the slots that a policy chose of a layer.

Owns how these are gathered, and turned where they are to stand elsewhere. Knows no policy, and nothing of what is new.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longctx.backend import quick
from longctx.backend.forks import Held
from longctx.backend.parts import Part, part
from longctx.keys import Asked, Choice, Turn


def read(held: Held, choice: Choice, asked: Asked) -> Part:
    """Attention over the slots chosen of a layer."""
    folded, scale, softcap = asked.rows, asked.scale, asked.softcap
    batch, kv_heads, rows, dim = folded.shape
    if choice.slots is None:  # the same keys for every row of the batch
        together = folded.transpose(0, 1).reshape(1, kv_heads, batch * rows, dim)
        out, log = part(together, held.keys[None], held.values[None], scale, softcap=softcap)
        return Part(
            out.view(kv_heads, batch, rows, -1).transpose(0, 1), log.view(kv_heads, batch, rows).transpose(0, 1)
        )
    if choice.places is None and softcap is None:
        found = quick.named(folded, held.keys[None], held.values[None], scale, choice.slots, choice.counts)
        if found is not None:
            return Part(*found)
    keys, values = _gathered(held.keys, choice.slots), _gathered(held.values, choice.slots)
    if choice.places is not None:
        assert held.turn is not None and held.index is not None
        stand = choice.slots
        if held.index.stored is not None:
            stand = held.index.stored.expand(batch, -1, -1).gather(2, choice.slots)
        keys = _moved(keys, choice.places - stand, held.turn)
    seen = None if choice.read is None else choice.read[:, :, None]
    return part(folded, keys, values, scale, seen, softcap)


def _moved(keys: Tensor, by: Tensor, turn: Turn) -> Tensor:
    """``keys`` [batch, kv_heads, slots, dim] turned ``by`` so many positions, where that is none as they are.

    A policy that moves the beginning of a text alone would have all of its keys turned otherwise, for every block.
    """
    slots = by.any(0).any(0).nonzero()[:, 0]
    if 2 * len(slots) > by.shape[-1]:  # to take them out and put them back is not free
        return turn(keys, by)
    if len(slots):
        keys[:, :, slots] = turn(keys[:, :, slots], by[:, :, slots])
    return keys


def _gathered(states: Tensor, slots: Tensor) -> Tensor:
    """[kv_heads, slots, dim] at long [batch, kv_heads, chosen] as [batch, kv_heads, chosen, dim]."""
    kv_heads, count, dim = states.shape
    heads = torch.arange(kv_heads, device=slots.device)[:, None] * count
    rows = states.reshape(kv_heads * count, dim)
    return rows.index_select(0, (slots + heads).reshape(-1)).view(*slots.shape, dim)
