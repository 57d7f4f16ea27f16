"""What tests of machine code need: a compiler and threads, and a number of these for the time of a test."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from longctx.kernels import machine, steps
from longctx.kernels.loops import FORMATS
from longctx.kernels.steps import Steps

# not where a kernel says so: one that is wrong takes itself for none, and its tests must fail then
needed = pytest.mark.skipif(
    not (machine.compiler(torch.float32) and machine.threads()), reason="there is no compiler, or no way to the threads"
)


def found_whatever_torch_is_told(right: machine.Right, formats: Collection[torch.dtype] = FORMATS.keys()) -> None:
    """A kernel is found right for all its formats, whatever torch makes tensors of where it is not told."""
    for default in (torch.float32, torch.bfloat16, torch.float64):
        torch.set_default_dtype(default)
        try:
            with torch.device("meta"):
                found = {dtype: machine.checked.__wrapped__(dtype, right) for dtype in formats}
        finally:
            torch.set_default_dtype(torch.float32)
        assert found == {dtype: machine.compiler(dtype) for dtype in formats} and all(found.values()), default


def always_the_same(work: Callable[[], Sequence[torch.Tensor]]) -> None:
    """Four threads of one's own get what one alone does, fifty times each; what fails in one of them fails here."""
    expected = work()

    def agrees(number: int) -> bool:
        found = [work() for _ in range(50)]
        return all(torch.equal(one, own) for each in found for one, own in zip(each, expected, strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(agrees, range(4)))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def made(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, add: bool = False
) -> torch.Tensor:
    """``out``, once it is the product of ``x`` packed, where rows are, among bytes that are no numbers."""
    room = torch.full((steps.packed(weight.dtype, *x.shape),), 0xFF, dtype=torch.uint8)  # numbers that are none
    doing = Steps(weight.dtype, len(x), (weight.shape[1],))
    doing.pack(x, room)
    doing.product(x, weight, bias, out, add)
    doing.run()
    return out
