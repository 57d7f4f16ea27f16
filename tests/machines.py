"""What tests of machine code need: a compiler and threads, and a number of these for the time of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from longctx.kernels import machine

# not where a kernel says so: one that is wrong takes itself for none, and its tests must fail then
needed = pytest.mark.skipif(
    not (machine.compiler(torch.float32) and machine.threads()), reason="there is no compiler, or no way to the threads"
)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
