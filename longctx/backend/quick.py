"""Attention of a few queries by the compiled kernel, where that is faster than the library's.

Owns the choice between the two and the trial that decides. Knows no cache and no layer.
"""

from __future__ import annotations

import functools
from bisect import bisect_left

import torch
from torch import Tensor

from longctx.backend.kept import kept, said
from longctx.backend.trial import fastest
from longctx.kernels import few_queries, machine

MOST = 64  # rows of a KV head that are few
_COUNTS = (1, 2, 4, 8, 16, 32, MOST)  # that are tried; others are as the next of these
_LEAST = 1024  # keys below which what a call costs is most of it
_KEYS = 2**14  # of the trial: more than the nearer caches hold, as those of all layers are
_FASTER = 1.05  # how many times as fast the kernel must be: it rounds otherwise


def over(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
    """What ``few_queries.attend`` gives for all of many keys; None where the library's way is as fast.

    Nothing is kept for gradients.
    """
    if not machine.plain():
        return None
    rows, width = query.shape[2], query.shape[3]
    if rows > MOST or key.shape[2] < _LEAST or not _may(query, key, value):
        return None
    wins = _wins(key.dtype, width, torch.get_num_threads())[bisect_left(_COUNTS, rows)]
    return few_queries.attend(query, key, value, scale) if wins else None


def named(
    query: Tensor, key: Tensor, value: Tensor, scale: float, slots: Tensor, counts: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """The same for those of the keys that ``slots`` and ``counts`` name, which need not be gathered so."""
    if not machine.plain() or query.shape[2] > MOST or not _may(query, key, value):
        return None
    return few_queries.attend(query, key, value, scale, slots, counts)


def _may(query: Tensor, key: Tensor, value: Tensor) -> bool:
    alike = query.dtype == key.dtype and query.shape[-1] == key.shape[-1]
    return alike and not torch.is_grad_enabled() and few_queries.suits(key, value)


@functools.cache  # a fact about the processor and the ``threads`` that there are
def _wins(dtype: torch.dtype, width: int, threads: int) -> list[bool]:
    about = (
        f"{dtype}, {width} wide, rows {_COUNTS}, kernel {few_queries.REVISION} by {few_queries.version(dtype, width)}"
    )
    return kept("attention", about, functools.partial(_tried, dtype, width), _understood)


def _understood(found: list[bool]) -> list[bool]:
    if len(found) != len(_COUNTS):
        raise ValueError("the rows are others")
    return [said(one) for one in found]


def _tried(dtype: torch.dtype, width: int) -> list[bool]:
    """For every count of rows, whether the kernel is the faster one."""
    key, value = torch.ones(2, 1, 2, _KEYS, width, dtype=dtype, device="cpu").unbind()
    return [_quicker(torch.ones(1, 2, rows, width, dtype=dtype, device="cpu"), key, value) for rows in _COUNTS]


def _quicker(query: Tensor, key: Tensor, value: Tensor) -> bool:
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    ways = (lambda: flash(query, key, value, 0.0, False), lambda: few_queries.attend(query, key, value, 1.0))
    return fastest(ways, _FASTER)[0] == 1
