"""The rows of a pass in blocks that share one choice of keys, and what they see and weigh.

Owns the arithmetic of shapes: rows of one KV head stand together, its query heads one after another, and blocks of rows
become a batch of their own. Knows no cache and no policy.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 64  # rows of a pass that share one choice
_TOGETHER = 4  # blocks that are attended to at once: each with a choice of its own, as one of a batch
_SCORES = 2**28  # of their rows against all slots of a context, which no policy makes more than once or twice


def together(query: Tensor, slots: int) -> int:
    """How many blocks of ``query`` [batch, heads, rows, dim] to attend to at once over a context of ``slots``.

    On a GPU several, as far as memory goes: a choice is some hundred small operations, and starting them takes longer
    than they do. A CPU gains nothing by it.
    """
    if query.device.type == "cpu":
        return 1
    return max(1, min(_TOGETHER, _SCORES // max(1, len(query) * query.shape[1] * BLOCK * slots)))


def spans(count: int, most: int) -> Iterator[tuple[int, int, int]]:
    """The rows of a pass that are attended to at once: where they begin and end, and their blocks, at most ``most``."""
    whole = count // BLOCK
    for block in range(0, whole, most):
        stop = min(block + most, whole)
        yield block * BLOCK, stop * BLOCK, stop - block
    if count % BLOCK:
        yield whole * BLOCK, count, 1


def apart(folded: Tensor, groups: int, blocks: int) -> Tensor:
    """[batch, kv_heads, groups * rows, ...] with each of the ``blocks`` of rows as one of the batch."""
    if blocks == 1:
        return folded
    batch, kv_heads, _, *rest = folded.shape
    one = folded.reshape(batch, kv_heads, groups, blocks, -1, *rest).movedim(3, 1)
    return one.reshape(batch * blocks, kv_heads, -1, *rest)


def beside(each: Tensor, groups: int, blocks: int) -> Tensor:
    """What ``apart`` was given to make ``each``."""
    if blocks == 1:
        return each
    _, kv_heads, _, *rest = each.shape
    one = each.reshape(-1, blocks, kv_heads, groups, BLOCK, *rest).movedim(1, 3)
    return one.reshape(len(one), kv_heads, -1, *rest)


def seen(
    mask: Tensor | None, start: int, stop: int, count: int, new: int, groups: int, device: torch.device
) -> Tensor | None:
    """Which of the new tokens some rows see, bool [batch, 1, groups * rows, new]; without a mask rows are causal."""
    if mask is not None:
        allowed = mask[:, :, start:stop]
        if allowed.dtype != torch.bool:
            allowed = allowed >= 0
        return allowed.repeat(1, 1, groups, 1)
    if count == 1:
        return None
    places = torch.arange(new - count + start, new - count + stop, device=device)
    return (torch.arange(new, device=device) <= places[:, None]).repeat(groups, 1)


def weights(mask: Tensor | None, start: int, stop: int, count: int, groups: int, blocks: int) -> Tensor | None:
    """What each row weighs in the choice of its block, float32 [batch * blocks, 1, groups * rows, 1]: padding nothing.

    The rows of a block weigh 1 together, if any of them is no padding.
    """
    if mask is None or count == 1:
        return None
    first = mask.shape[-1] - count
    own = mask[:, :1, start:stop, first + start : first + stop].diagonal(dim1=-2, dim2=-1)
    real = apart((own if own.dtype == torch.bool else own >= 0).repeat(1, 1, groups).float(), groups, blocks)
    return (real / real.sum(-1, keepdim=True).clamp_min(1)).unsqueeze(-1)


def within(mask: Tensor, window: int, rows: int, keys: int) -> Tensor:
    """Who sees whom where tokens see a window, bool [batch, 1, rows, keys]; ``mask`` is [batch, slots], padding False.

    Windows are counted in positions, and padding has none: counted in slots it would push keys out of sight.
    """
    columns = mask.shape[1]
    place = torch.arange(columns, device=mask.device)
    position = mask.long().cumsum(-1)
    one, other = slice(columns - rows, columns), slice(columns - keys, columns)
    far = position[:, one, None] - position[:, None, other]
    causal = place[one, None] >= place[None, other]
    near = causal & mask[:, None, other] & (far < window)
    itself = place[one, None] == place[None, other]  # a row of padding must see something
    return (near | itself)[:, None]
