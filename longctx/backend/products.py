"""Attention as plain matrix products over blocks of query rows, where those are faster than the library's fused kernel.

Owns that arithmetic and the trial that decides for it. In bfloat16 the fused kernel of PyTorch multiplies many small
tiles, each by a call of its own, on processors that have fast bfloat16 products and no tile instructions. Few large
products pay where there are many keys or texts, and many small ones do not: the trial is made for sizes as they come.
Knows nothing of models and caches.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from longctx.backend import quick
from longctx.backend.kept import kept, said
from longctx.backend.parts import causal_part, fold, merge, part
from longctx.backend.trial import faster

_ROWS = 64  # query rows of a block: keys that no row of it sees are left out
_SCORES = 2**22  # scores held at a time
_WIDE = 2**18  # of them, in float32: pages of more are new each time, and cost more than the sums
_LEAST = 2.0**-100  # of a row's sum of weights, and one over the most: between them float32 and bfloat16 lose nothing
_LEAST_ROWS, _LEAST_KEYS = 16, 256  # below which so many small products win nowhere
# of a trial, and more are as these: texts, the tokens of one that is read whole and of each of several, rows, keys
_TEXTS, _ALONE, _TOGETHER, _MOST_ROWS, _MOST_KEYS = 4, 2048, 1024, 512, 2048

Shape = tuple[int, int, int, int, int, int, bool]
"""Of a trial: texts, heads, KV heads, rows and keys of each text, numbers of a head, and whether there is a mask."""


def wins(query: Tensor, key: Tensor, masked: bool) -> bool:
    """Whether ``attend`` is the way for sizes like these: in bfloat16 on a CPU, where it is the faster one.

    Scores stand in the format of the queries, which float16 is too narrow for, and nothing is kept for gradients. A few
    rows of one text behind others have kernels of their own.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or torch.is_grad_enabled():
        return False
    (batch, heads, rows, dim), (_, kv_heads, keys, _) = query.shape, key.shape
    if rows < _LEAST_ROWS or keys < max(_LEAST_KEYS, rows):
        return False
    if batch == 1 and rows < keys and not masked and rows * (heads // kv_heads) <= quick.MOST:
        return False
    texts = _TEXTS if batch > 1 else 1
    if rows == keys:
        some = every = _size(keys, _ALONE if batch == 1 else _TOGETHER)
    else:
        some = _size(rows, _MOST_ROWS)
        every = max(_size(keys, _MOST_KEYS), 2 * some)
    return _faster(query.dtype, (texts, heads, kv_heads, some, every, dim, masked), torch.get_num_threads())


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention output [batch, heads, queries, dim], as ``scaled_dot_product_attention`` has it up to rounding.

    Scores are rounded to the format of the queries, as in transformers' eager attention; the fused kernel keeps more.

    ``query`` [batch, heads, queries, dim], ``key`` and ``value`` [batch, kv_heads, keys, dim]. ``mask`` says what is
    seen, [batch or 1, heads or 1, queries, keys]; without one the rows are causal, the last aligned with the last key.
    """
    batch, heads, queries, dim = query.shape
    kv_heads, keys, groups = key.shape[1], key.shape[2], heads // key.shape[1]
    # Softmax is the same for keys moved by one vector; near the origin, scores lose less to the rounding of products.
    # Models whose keys have a large bias need it: without, their values came out half as far again from float32's. The
    # rows' own keys are the last ones and never padding.
    key = key - key[:, :, -queries:].mean(2, keepdim=True)
    every = batch * kv_heads
    turned = key.reshape(every, keys, dim).transpose(1, 2)
    if queries > _ROWS:  # every block of rows multiplies by it
        turned = turned.contiguous()
    value = value.reshape(every, keys, -1)
    query = (query * scale).reshape(every, groups, queries, dim)
    out = query.new_empty(batch, queries, heads, value.shape[-1])
    into = out.view(batch, queries, kv_heads, groups, -1).permute(0, 2, 3, 1, 4)
    rows = max(1, min(_ROWS, queries, _SCORES // (groups * keys)))
    some = max(1, min(every, _SCORES // (groups * rows * keys)))  # of the KV heads of all texts, at a time
    room = query.new_empty(some * groups * rows * keys)
    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        width = keys - queries + stop if mask is None else keys
        seen = None
        if mask is not None:  # copied for every head, and so of some rows at a time
            seen = mask.expand(batch, heads, queries, keys)[:, :, start:stop].reshape(every, groups, stop - start, keys)
        blocks = []
        for at in range(0, every, some):
            part = slice(at, at + some)
            shown = None if seen is None else seen[part]
            blocks.append(_block(query[part, :, start:stop], turned[part, :, :width], value[part, :width], shown, room))
        into[:, :, :, start:stop] = torch.cat(blocks).view(batch, kv_heads, groups, stop - start, -1)
    return out.transpose(1, 2)


def _block(query: Tensor, turned: Tensor, value: Tensor, seen: Tensor | None, room: Tensor) -> Tensor:
    """Output rows [some, groups * rows, dim] of ``query`` [some, groups, rows, dim] over all keys of ``turned``.

    The scores of keys near their mean lie about zero, so that nothing needs to be taken off before the exponential, and
    one pass over them does what a softmax does in three. Where the sums say otherwise, it is a softmax.
    """
    weights = _scores(query, turned, seen, room).exp_()
    sums = _sums(weights)
    if _sound(sums, seen):
        return torch.bmm(weights, value).div_(sums.clamp_min_(_LEAST))
    return torch.bmm(_scores(query, turned, seen, room).softmax(-1), value)


def _sums(weights: Tensor) -> Tensor:
    """The sums of ``weights`` [some, rows, keys] over the keys, [some, rows, 1]: in float32 at least, in pieces."""
    wide = torch.promote_types(weights.dtype, torch.float32)
    pieces = torch.split(weights.flatten(0, 1), max(1, _WIDE // weights.shape[-1]))
    return torch.cat([piece.sum(-1, dtype=wide) for piece in pieces]).view(*weights.shape[:2], 1)


def _scores(query: Tensor, turned: Tensor, seen: Tensor | None, room: Tensor) -> Tensor:
    """Logits in ``room``, [some, groups * rows, keys], as low as numbers go where nothing is seen."""
    some, groups, rows, dim = query.shape
    keys = turned.shape[-1]
    scores = room[: some * groups * rows * keys].view(some, groups * rows, keys)
    torch.bmm(query.reshape(some, groups * rows, dim), turned, out=scores)
    by_row = scores.view(some, groups, rows, keys)
    # not -inf: a row of padding sees nothing at all and must stay finite
    if seen is None:
        at = torch.arange(rows, device=scores.device)
        by_row[..., keys - rows :].masked_fill_(at > at[:, None], torch.finfo(scores.dtype).min)
    else:
        by_row.masked_fill_(~seen, torch.finfo(scores.dtype).min)
    return scores


def _sound(sums: Tensor, seen: Tensor | None) -> bool:
    """Whether the sums [some, groups * rows, 1] of all rows that see anything are neither too large nor too small."""
    sound = (sums > _LEAST) & (sums < 1 / _LEAST)
    if bool(sound.all()):
        return True
    return seen is not None and not bool((seen.any(-1).view_as(sound) & ~sound).any())


def _size(count: int, most: int) -> int:
    """The power of two that a trial is made for in place of ``count``: the same or less."""
    return min(most, 1 << count.bit_length() - 1)


@functools.cache  # a fact about the processor and the ``threads`` that there are
def _faster(dtype: torch.dtype, shape: Shape, threads: int) -> bool:
    texts, heads, kv_heads, rows, keys, dim, masked = shape

    def attempt() -> bool:
        query = torch.ones(texts, heads, rows, dim, dtype=dtype, device="cpu")
        key = torch.ones(texts, kv_heads, keys, dim, dtype=dtype, device="cpu")
        mask = torch.ones(rows, keys, dtype=torch.bool, device="cpu").tril_(keys - rows)[None, None] if masked else None
        return faster(lambda: attend(query, key, key, mask, 1.0), lambda: _usual(query, key, mask))

    about = f"{dtype}, {texts} texts, {heads} heads over {kv_heads}, {rows} rows, {keys} keys, {dim} wide, {masked=}"
    return kept("products", about, attempt, said)


def _usual(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """What reading does where this does not win, of causal rows over keys that are values too."""
    rows, keys, kv_heads = query.shape[2], key.shape[2], key.shape[1]
    if mask is not None:
        seen = mask.repeat(1, 1, query.shape[1] // kv_heads, 1)
        return F.scaled_dot_product_attention(fold(query, kv_heads), key, key, seen, scale=1.0)
    if rows < keys and len(query) == 1:  # a piece of one text behind others
        before, own = torch.split(key, [keys - rows, rows], 2)
        return merge([part(fold(query, kv_heads), before, before, 1.0), causal_part(query, own, own, 1.0)])
    allowed = None if rows == keys else torch.ones(rows, keys, dtype=torch.bool, device="cpu").tril_(keys - rows)
    return F.scaled_dot_product_attention(
        query, key, key, allowed, is_causal=allowed is None, scale=1.0, enable_gqa=True
    )
