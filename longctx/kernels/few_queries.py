"""Attention of a few queries over many keys, on a CPU: keys and values are read once, and only those that are named.

Owns what it takes and gives. The library's own kernel multiplies blocks of keys by calls of their own, reads all that
it is given, and takes several times as long for one row in formats of 16 bits. Here a block of keys is widened and
turned, so that a vector has one dimension of many keys, and goes to all rows while it is in a cache; what is read next
is asked for meanwhile. Softmax is made as it goes (Milakov and Gimelshein 2018). Knows no cache and no policy.
"""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longctx.kernels import blocks, machine, query_code

REVISION = 3  # to be raised when the way of attending changes: what was tried before then holds no more
WIDEST = 256  # numbers of a key: a block of them is worked on in the nearest caches
LOWEST = blocks.LOWEST
States = tuple[Tensor, Tensor]


def suits(key: Tensor, value: Tensor) -> bool:
    """Whether ``attend`` can be had for keys and values [batch, kv_heads, keys, dim]: on a CPU, alike.

    Their numbers must stand side by side, in whole vectors.
    """
    width, dtype = key.shape[-1], key.dtype
    return (
        key.is_cpu
        and value.is_cpu
        and dtype == value.dtype
        and width == value.shape[-1] <= WIDEST
        and key.stride(-1) == value.stride(-1) == 1
        and bool(version(dtype, width))
    )


def version(dtype: torch.dtype, width: int) -> str:
    """Which compiler ``attend`` is had from for keys of a format and a width; empty where it is not."""
    return machine.version(dtype, width, _right)


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    slots: Tensor | None = None,
    counts: Tensor | None = None,
    more: States | None = None,
    said: States | None = None,
) -> tuple[Tensor, Tensor]:
    """What ``attend`` gives, up to the order of its sums."""
    batch = len(query)
    key, value = (states.float().expand(batch, -1, -1, -1) for states in (key, value))
    if slots is not None:
        key, value = (
            states.gather(2, slots[..., None].expand(-1, -1, -1, states.shape[-1])) for states in (key, value)
        )
    gone = torch.zeros(batch, *key.shape[1:3], dtype=torch.bool, device=key.device)
    if counts is not None:
        gone = torch.arange(key.shape[2], device=key.device) >= counts[..., None]
    if more is not None:
        others = [states.float().expand(batch, -1, -1, -1) for states in more]
        key, value = (torch.cat(both, 2) for both in zip((key, value), others, strict=True))
        gone = torch.nn.functional.pad(gone, (0, others[0].shape[2]))
    logits = (query.float() @ key.transpose(-1, -2) * scale).masked_fill(gone[:, :, None], LOWEST)
    none = gone.all(-1)[..., None]
    out, log = (logits.softmax(-1) @ value).masked_fill(none[..., None], 0), logits.logsumexp(-1).clamp_min(LOWEST)
    return (out if said is None else _beside(out, log, said)), log


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    slots: Tensor | None = None,
    counts: Tensor | None = None,
    more: States | None = None,
    said: States | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows [batch, kv_heads, rows, dim] over keys and values [batch or 1, kv_heads, keys, dim], all in float32.

    Returns the rows' outputs, float32 [batch, kv_heads, rows, dim], and the logarithms of their softmax's denominators,
    float32 [batch, kv_heads, rows], ``LOWEST`` where nothing is seen. Of the keys only ``slots``, long
    [batch, kv_heads, some], are read, and of these the first ``counts``, long [batch, kv_heads]; None: all. ``more``
    keys and values, which stand elsewhere, are all read. What other keys have ``said``, their outputs and logarithms
    as those that are returned, is in the outputs but not in the logarithms. Infinite logits make outputs that are no
    numbers. Raises ValueError for keys that do not suit and for other shapes, IndexError for slots that are none of the
    keys and for counts of more than there are.
    """
    every = [(key, value)] if more is None else [(key, value), more]
    if not all(suits(*states) for states in every) or not _fit(query, every, slots, counts, said):
        raise ValueError(
            f"query {tuple(query.shape)}, keys and values "
            f"{[(tuple(one.shape), tuple(other.shape), one.dtype, str(one.device)) for one, other in every]}: it takes "
            "rows and keys as wide as each other on a CPU, where suits() says yes."
        )
    return _attended(query, every, scale, slots, counts, said)


def _attended(
    query: Tensor,
    every: Sequence[States],
    scale: float,
    slots: Tensor | None = None,
    counts: Tensor | None = None,
    said: States | None = None,
) -> tuple[Tensor, Tensor]:
    batch, heads, rows, width = query.shape
    (key, _), most = every[0], 0 if slots is None else slots.shape[2]
    limit = key.shape[2] if slots is None else most
    if slots is not None and not most:  # of nothing, nothing is named
        every, slots = [(states[0][:, :, :0], states[1][:, :, :0]) for states in every[:1]] + list(every[1:]), None
    wide = (query.float() * scale).contiguous()
    wrong = array("q", (0,))
    threads, sets = machine.threads() or 1, batch * heads
    pieces = threads // math.gcd(sets, threads)
    out = torch.empty(pieces, batch, heads, rows, width, dtype=torch.float32, device="cpu")
    log = torch.empty(pieces, batch, heads, rows, dtype=torch.float32, device="cpu")
    sums = torch.empty_like(log)
    beside = (None, None) if said is None or pieces > 1 else said
    held = [None if one is None else one.contiguous() for one in (slots, counts, *beside)]
    machine.run(
        _compiled(key.dtype, width, blocks.tiles(rows)),
        (
            wide.data_ptr(),
            *(0 if one is None else one.data_ptr() for one in held),
            *(one.data_ptr() for one in (out, log, sums)),
            wrong.buffer_info()[0],
            *(heads, rows, most, pieces, sets),
            *(number for states in every for number in standing(*states)),
            *(0,) * (9 * (2 - len(every))),
        ),
    )
    if wrong[0]:
        raise IndexError(f"a slot is none of {key.shape[2]} keys, or a count is none of 0 to {limit}.")
    if pieces == 1:
        return out[0], log[0]
    joined, total = (out * log.softmax(0).unsqueeze(-1)).sum(0), log.logsumexp(0)
    return (joined if said is None else _beside(joined, total, said)), total


def standing(key: Tensor, value: Tensor) -> list[int]:
    """How many keys there are, and where they and their values stand; those of one text serve all."""
    found = [key.shape[2]]
    for states in (key, value):
        text, head, one, _ = states.stride()
        found += [states.data_ptr(), text if states.shape[0] > 1 else 0, head, one]
    return found


def _beside(out: Tensor, log: Tensor, said: States) -> Tensor:
    """Outputs with what other keys have said."""
    share = torch.sigmoid(said[1] - log).unsqueeze(-1)
    return out + (said[0] - out) * share


def _fit(
    query: Tensor, every: Sequence[States], slots: Tensor | None, counts: Tensor | None, said: States | None
) -> bool:
    batch, heads, _, width = query.shape
    like = [
        key.shape == value.shape
        and key.shape[0] in (1, batch)
        and (heads, width, every[0][0].dtype) == (key.shape[1], key.shape[3], key.dtype)
        for key, value in every
    ]
    sets, outs = query.shape[:2], query.shape
    told: list[tuple[Tensor, torch.dtype, tuple[int, ...]]] = []
    told += [] if said is None else [(said[0], torch.float32, outs), (said[1], torch.float32, outs[:3])]
    told += [] if slots is None else [(slots, torch.long, (*sets, slots.shape[-1]))]
    told += [] if counts is None else [(counts, torch.long, sets)]
    return (
        query.is_cpu and all(like) and all(x.is_cpu and x.dtype == dtype and x.shape == own for x, dtype, own in told)
    )


def _right(dtype: torch.dtype) -> bool:
    width = machine.lanes()
    numbers = torch.arange(5 * width, dtype=torch.float32, device="cpu").view(1, 1, 5, width)
    x = (numbers / width).to(dtype)
    query, said = x[:, :, :2], (numbers[:, :, :2], numbers[:, :, :2, 0])
    slots = torch.tensor([[[3, 1]]], device="cpu")
    first, more = [(states, states) for states in (x[:, :, :4], x[:, :, 4:])]
    pairs = (
        (_attended(query, [(x, x)], 1.0), reference(query, x, x, 1.0)),
        (
            _attended(query, [first, more], 1.0, slots, None, said),
            reference(query, *first, 1.0, slots, None, more, said),
        ),
    )
    return all(torch.allclose(*both, rtol=1e-4) for pair in pairs for both in zip(*pair, strict=True))


@functools.cache
def _compiled(dtype: torch.dtype, width: int, tiles: tuple[int, ...]) -> Any:
    """The machine code for keys of a format and a width, and so many rows at a time: each takes a while to compile."""
    return machine.compiled(query_code.code(dtype, width, tiles, machine.lanes()))
