"""Attention of some rows over the slots that a policy chose of a layer, alone or with what is new in one call.

Owns how these are gathered, and turned where they are to stand elsewhere. Knows no policy.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from longctx.backend import quick
from longctx.backend.blocks import seen
from longctx.backend.forks import Held
from longctx.backend.parts import Part, part
from longctx.kernels import tile_queries
from longctx.keys import Asked, Choice, Turn, Unread


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
    real = None if choice.read is None else choice.read[:, :, None]
    return part(folded, keys, values, scale, real, softcap)


def beside(held: Held, choice: Choice, asked: Asked, own: tuple[Tensor, Tensor]) -> Part | None:
    """The same together with new tokens that stand behind each other and see what is before them, in one call.

    Their keys and values are ``own`` [batch, kv_heads, tokens, dim]. The output has in it what the choice says of the
    slots that are not read, the logarithm does not. None where there is no kernel that does it.
    """
    rows, unread, count = asked.rows, choice.unread, asked.rows.shape[2] // asked.groups
    if choice.places is not None or asked.softcap is not None:
        return None
    if choice.slots is None:
        hidden = functools.partial(_behind, count, asked.groups)
        given = None if unread is not None else (rows, held.keys[None], held.values[None], asked.scale, hidden, own)
        found = None if given is None else quick.over(*given)
    elif count == 1 and (unread is None or unread.out is None or _plain(unread, rows)):
        said = None if unread is None else unread.said
        keys, values = held.keys[None], held.values[None]
        found = quick.named(rows, keys, values, asked.scale, choice.slots, choice.counts, own, said)
    else:
        return None
    return None if found is None else Part(*found)


def _plain(unread: Unread, rows: Tensor) -> bool:
    """Whether what is thought of slots that are not read is of one number a row and output, in float32."""
    shapes = unread.said is not None and [one.shape for one in unread.said] == [rows.shape, rows.shape[:3]]
    return shapes and all(one.dtype == torch.float32 for one in unread.said or ())


@functools.lru_cache(maxsize=64)  # the same for all layers of a pass, and for the next one
def _behind(count: int, groups: int) -> Tensor | None:
    """Which of the ``count`` last keys as many rows of each head see, as ``tile_queries`` takes it; None: all."""
    causal = seen(None, 0, count, count, count, groups, torch.device("cpu"))
    return None if causal is None else tile_queries.lay(causal)


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
    if not states.is_contiguous():  # a growing text: as one row of heads all of it would be copied for every block
        some = [own.index_select(0, slots[:, head].reshape(-1)) for head, own in enumerate(states)]
        return torch.stack(some).view(kv_heads, len(slots), -1, dim).transpose(0, 1)
    heads = torch.arange(kv_heads, device=slots.device)[:, None] * count
    rows = states.reshape(kv_heads * count, dim)
    return rows.index_select(0, (slots + heads).reshape(-1)).view(*slots.shape, dim)
