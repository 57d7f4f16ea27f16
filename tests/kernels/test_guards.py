"""Kernels read nothing but what they are given: memory right before it and right behind it may not be touched here."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from machines import needed
from torch import Tensor

from longctx.kernels import cluster_choice, few_queries

_PAGE = mmap.PAGESIZE


def guarded(states: Tensor, late: bool) -> Tensor:
    """A copy that ends at a page which may not be read, or begins behind one."""
    bytes_ = states.numel() * states.element_size()
    inside = -(-bytes_ // _PAGE) * _PAGE
    room = mmap.mmap(-1, inside + 2 * _PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(room))
    made = torch.frombuffer(
        room, dtype=states.dtype, count=states.numel(), offset=_PAGE + (inside - bytes_ if late else 0)
    )
    made.copy_(states.flatten())
    library = ctypes.CDLL(None, use_errno=True)
    for page in (start, start + _PAGE + inside):
        if library.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(_PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    return made.view(states.shape)


def attend(late: bool, dtype: torch.dtype, rows: int, keys: int) -> None:
    def held(*shape: int) -> Tensor:
        return guarded(torch.randn(shape).to(dtype), late)

    given = held(1, 2, rows, 48), held(1, 2, keys, 48), held(1, 2, keys, 48)
    slots = guarded(torch.randint(0, keys, (1, 2, 9)), late)
    counts = guarded(torch.tensor([[9, 3]]), late)
    more = held(1, 2, 7, 48), held(1, 2, 7, 48)
    said = guarded(torch.randn(1, 2, rows, 48), late), guarded(torch.randn(1, 2, rows), late)
    for some in ((), (slots,), (slots, counts), (slots, counts, more), (None, None, more, said)):
        found = few_queries.attend(*given, 0.2, *some)
        for one, other in zip(found, few_queries.reference(*given, 0.2, *some), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def choose(late: bool, dtype: torch.dtype, rows: int, clusters: int) -> None:
    means, spreads, says = (guarded(torch.rand(2, clusters, 48).to(dtype), late) for _ in range(3))
    sizes = torch.randint(1, 6, (2, clusters))
    logs, starts = (guarded(one, late) for one in (sizes.log(), sizes.cumsum(-1) - sizes + 3))
    own = cluster_choice.Clusters(
        means, spreads, says, guarded(torch.randn(2, 1, 48), late), logs, guarded(sizes, late), starts
    )
    tokens = int(sizes.sum(-1).max()) + 5
    keys = guarded(torch.randn(2, tokens, 48).to(dtype), late)
    query, weights = guarded(torch.randn(1, 2, rows, 48).to(dtype), late), guarded(torch.rand(1, 1, rows, 1), late)
    given = (query, keys, own, 0.2, (3, 2), 5 + tokens // 2, weights)
    assert torch.equal(cluster_choice.choose(*given).counts, cluster_choice.reference(*given).counts)


@needed
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are forbidden in the way of Linux")
@pytest.mark.parametrize("which", ["attend", "choose"])
def test_nothing_is_touched_before_and_behind_what_is_given(which: str) -> None:
    """In a process of its own, which a kernel that reads too far ends."""
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    asked = [sys.executable, __file__, which]
    ran = subprocess.run(asked, capture_output=True, text=True, timeout=200, env=here)
    assert ran.returncode == 0, ran.stderr[-2000:]


if __name__ == "__main__":
    way = {"attend": attend, "choose": choose}[sys.argv[1]]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for seed in range(12):
            torch.manual_seed(seed)
            for dtype in (torch.float32, torch.bfloat16):
                for late in (False, True):
                    way(late, dtype, 1 + 4 * seed % 19, 1 + 7 * seed % 61)
