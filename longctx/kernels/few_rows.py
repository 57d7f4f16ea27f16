"""A few rows times a matrix of weights, on a CPU: every weight is read once and widened on its way to all rows.

Owns the machine code. A product of few rows need take no longer than reading the weights. PyTorch's takes several times
as long in formats that a processor has no products of. Knows no layer and no model.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from longctx.kernels import machine
from longctx.kernels.loops import FORMATS, Loops

_TILE = 8  # rows whose sums are kept in registers at a time; more come in turns, over weights that are still in a cache
_NEAR = 2**17  # numbers of the weights that go to all rows before the next ones are read
_TOLD = ("x", "w", "out", "ROWS", "STRIDE", "BLOCK", "number", "count")


def suits(weight: Tensor) -> bool:
    """Whether ``product`` can be had here for ``weight`` [out, in]: on a CPU, contiguous, and of some ``version``."""
    return weight.is_cpu and weight.is_contiguous() and bool(version(weight.dtype, weight.shape[1]))


def version(dtype: torch.dtype, width: int) -> str:
    """Which compiler ``product`` is had from for weights of a format and a width; empty where it is not."""
    return machine.version(dtype, width, _right)


def reference(x: Tensor, weight: Tensor) -> Tensor:
    """What ``product`` gives, up to the order of its sums."""
    return x.float() @ weight.float().t()


def product(x: Tensor, weight: Tensor, together: int = 1) -> Tensor:
    """``x`` [rows, in] by the transposed ``weight`` [out, in], float32 [rows, out]; sums are made in float32.

    ``together`` rows of the weights go side by side, where they are divisible by that: what they share is loaded once,
    and the memory is read in as many places. Raises ValueError for other shapes, and for weights that do not suit.
    """
    if x.ndim != 2 or not x.is_cpu or x.shape[1] != weight.shape[1] or not suits(weight):
        raise ValueError(
            f"x {tuple(x.shape)} on {x.device}, weight {tuple(weight.shape)} of {weight.dtype} on {weight.device}: it "
            "takes contiguous weights and rows as wide as they are, on a CPU, where suits() says yes."
        )
    wide, (out, width) = x.float().contiguous(), weight.shape
    made = torch.empty(len(x), out, dtype=torch.float32, device="cpu")
    side = together if out % together == 0 else 1
    block = max(1, _NEAR // width // side) * side
    machine.run(_compiled(weight.dtype, width, side), _given(wide, weight, made, block))
    return made


def ready(dtype: torch.dtype, width: int, sides: Iterable[int]) -> None:
    """Afterwards ``product`` compiles nothing for weights like these with so many rows side by side."""
    for side in sides:
        _compiled(dtype, width, side)


def _right(dtype: torch.dtype) -> bool:
    width = machine.lanes()
    x, weight = (torch.arange(1, count * width + 1, device="cpu").view(count, -1).to(dtype) for count in (2, 3))
    wide, made = x.float(), torch.zeros(2, 3, dtype=torch.float32, device="cpu")
    machine.run(_compiled(dtype, width, 1), _given(wide, weight, made, 3))
    return torch.allclose(made, reference(x, weight))


def _given(x: Tensor, weight: Tensor, made: Tensor, block: int) -> tuple[int, ...]:
    """What the machine code is told."""
    return x.data_ptr(), weight.data_ptr(), made.data_ptr(), len(x), len(weight), block


@functools.cache
def _compiled(dtype: torch.dtype, width: int, side: int) -> Any:
    """The machine code for weights of ``width``, ``side`` rows at a time."""
    return machine.compiled(_code(dtype, width, side, machine.lanes()))


def _code(dtype: torch.dtype, width: int, side: int, lanes: int) -> str:
    """One function for every number of rows, and ``run`` for a thread's share of the weights, block by block."""
    code = Loops(lanes)
    for rows in range(1, _TILE + 1):
        _tile(code, FORMATS[dtype], rows, width, side)
    with code.function("void @run(ptr %given)"):
        told = code.told(_TOLD)
        low, high = code.share(told["number"], told["count"], code.div(told["STRIDE"], side))
        first, last = code.mul(low, side), code.mul(high, side)
        # the step of a loop is a number of the code, and that of the blocks is not
        blocks = code.div(code.add(code.sub(last, first), code.add(told["BLOCK"], -1)), told["BLOCK"])
        with code.loop(0, blocks) as block:
            begin = code.add(first, code.mul(block.index, told["BLOCK"]))
            end = code.least_of(code.add(begin, told["BLOCK"]), last)
            with code.loop(0, told["ROWS"], _TILE) as row:
                x = code.place("float", told["x"], code.mul(row.index, width))
                out = code.place("float", told["out"], code.mul(row.index, told["STRIDE"]))
                given = f"ptr {x}, ptr {told['w']}, ptr {out}, i64 {told['STRIDE']}, i64 {begin}, i64 {end}"
                rest = code.least_of(code.sub(told["ROWS"], row.index), _TILE)
                code.choose(rest, {count: f"call void @tile{count}({given})" for count in range(1, _TILE + 1)})
    return code.text()


def _tile(code: Loops, stored: str, rows: int, width: int, side: int) -> None:
    """Sums of ``rows`` rows of x and the rows of weights from ``low`` to ``high``, each written to its place in out."""
    lanes, vector, sums = code.lanes, code.vector, rows * side
    turns = max(n for n in (1, 2, 4, 8) if n == 1 or (n * sums <= _TILE and not width // lanes % n))
    places = [(row, s) for row in range(rows) for s in range(side)]
    with (
        code.function(f"internal void @tile{rows}(ptr %x, ptr %w, ptr %out, i64 %stride, i64 %low, i64 %high)"),
        code.loop("%low", "%high", side) as outer,
    ):
        first = code.mul(outer.index, width)
        weights = [code.place(stored, "%w", code.add(first, s * width)) for s in range(side)]
        sums_ = {f"a{turn}.{row}.{s}": (vector, "zeroinitializer") for turn in range(turns) for row, s in places}
        with code.loop(0, width, turns * lanes, sums_) as inner:
            for turn in range(turns):
                at = code.add(inner.index, turn * lanes)
                wide = [code.wide(stored, weight, at) for weight in weights]
                for row in range(rows):
                    x = code.wide("float", "%x", code.add(at, row * width))
                    for s in range(side):
                        name = f"a{turn}.{row}.{s}"
                        inner.next[name] = code.fma(wide[s], x, inner.now[name])
        for row, s in places:
            total = inner.now[f"a0.{row}.{s}"]
            for turn in range(1, turns):
                total = code.vec("fadd", total, inner.now[f"a{turn}.{row}.{s}"])
            code.store("float", code.sum(total), "%out", code.add(code.mul("%stride", row), code.add(outer.index, s)))
