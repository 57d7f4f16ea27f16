"""Attention of a few queries by a compiled kernel, where one is faster than the library's.

Owns the choice between them and the trial that decides. Knows no cache and no layer.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable

import torch
from torch import Tensor

from longctx.backend.kept import kept
from longctx.backend.trial import fastest
from longctx.kernels import few_queries, machine, tile_queries

MOST = 256  # rows of a KV head that are few
_FEW = 64  # rows, beyond which a kernel without tiles takes long to lose
_COUNTS = (1, 2, 4, 8, 16, 32, _FEW, 128, MOST)  # that are tried; others are as the next of these
_LEAST = 1024  # keys below which what a call costs is most of it
_KEYS = 2**14  # of the trial: more than the nearer caches hold, as those of all layers are
_FASTER = 1.05  # how many times as fast a kernel must be: it rounds otherwise
# and the rows up to which they are tried; a way is the place of one counted from 1, and 0 is the library's
_KERNELS = ((few_queries, _FEW), (tile_queries, MOST))


def over(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    hidden: Callable[[], Tensor | None] | None = None,
    more: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor] | None:
    """What the kernels' ``attend`` gives for all of many keys, by the fastest; None where that is the library's way.

    ``hidden`` makes what ``tile_queries`` takes where a row may not see all of the last keys, and ``more`` is as there:
    None too if the fastest kernel is another. Nothing is kept for gradients.
    """
    if not machine.plain():
        return None
    rows, width = query.shape[2], query.shape[3]
    if not 0 < rows <= MOST or key.shape[2] < _LEAST or not _may(query, key, value):
        return None
    way = _ways(key.dtype, width, torch.get_num_threads())[bisect_left(_COUNTS, rows)]
    if not way:
        return None
    kernel, _ = _KERNELS[way - 1]
    if hidden is None and more is None:
        found: tuple[Tensor, Tensor] = kernel.attend(query, key, value, scale)
        return found
    if kernel is not tile_queries or (more is not None and not _may(query, *more)):
        return None
    return tile_queries.attend(query, key, value, scale, None if hidden is None else hidden(), more)


def named(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    slots: Tensor,
    counts: Tensor | None,
    more: tuple[Tensor, Tensor] | None = None,
    said: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor] | None:
    """The same for those of the keys that ``slots`` and ``counts`` name, which need not be gathered so.

    ``more`` and ``said`` are as in ``few_queries``.
    """
    if not machine.plain() or query.shape[2] > _FEW or not _may(query, key, value):
        return None
    if more is not None and not _may(query, *more):
        return None
    return few_queries.attend(query, key, value, scale, slots, counts, more, said)


def ready(dtype: torch.dtype, width: int, keys: int) -> None:
    """Afterwards attention over so many keys has no trial in it, and what rows of some counts need is compiled."""
    if keys < _LEAST or not machine.plain():
        return
    key = torch.ones(1, 1, 1, width, dtype=dtype, device="cpu")
    for rows, way in zip(_COUNTS, _ways(dtype, width, torch.get_num_threads()), strict=True):
        if way:
            kernel, _ = _KERNELS[way - 1]
            kernel.attend(key.expand(-1, -1, rows, -1), key, key, 1.0)


def _may(query: Tensor, key: Tensor, value: Tensor) -> bool:
    alike = query.dtype == key.dtype and query.shape[-1] == key.shape[-1]
    return alike and not torch.is_grad_enabled() and few_queries.suits(key, value)


@functools.cache  # a fact about the processor and the ``threads`` that there are
def _ways(dtype: torch.dtype, width: int, threads: int) -> list[int]:
    about = (
        f"{dtype}, {width} wide, rows {_COUNTS}, kernel {few_queries.REVISION} by {few_queries.version(dtype, width)}, "
        f"tiles {tile_queries.REVISION} by {tile_queries.version(dtype, width)}"
    )
    return kept("attention", about, functools.partial(_tried, dtype, width), _understood)


def _understood(found: list[int]) -> list[int]:
    if len(found) != len(_COUNTS) or any(way not in range(len(_KERNELS) + 1) for way in found):
        raise ValueError("the rows or the ways are others")
    return [int(way) for way in found]


def _tried(dtype: torch.dtype, width: int) -> list[int]:
    """The fastest way for every count of rows."""
    key, value = torch.ones(2, 1, 2, _KEYS, width, dtype=dtype, device="cpu").unbind()
    return [_fastest(torch.ones(1, 2, rows, width, dtype=dtype, device="cpu"), key, value) for rows in _COUNTS]


def _fastest(query: Tensor, key: Tensor, value: Tensor) -> int:
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found, best = 0, functools.partial(flash, query, key, value, 0.0, False)
    for way, (kernel, most) in enumerate(_KERNELS, 1):
        other = functools.partial(kernel.attend, query, key, value, 1.0)
        if query.shape[2] <= most and kernel.suits(key, value) and fastest((best, other), _FASTER)[0]:
            found, best = way, other
    return found
