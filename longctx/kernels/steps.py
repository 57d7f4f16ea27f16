"""Steps of a layer over a few rows, many in one call, on a CPU: norms, products with weights, rotations.

Owns the list of steps that the code of ``step_code`` is told. Between two calls of small operations a processor waits
longer for Python than a step takes. Knows no layer and no model.
"""

from __future__ import annotations

import functools
import struct
import sys
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longctx.kernels import dots, machine, step_code, tiles
from longctx.kernels.loops import FORMATS

REVISION = 4  # to be raised when the way of multiplying changes: what was tried before then holds no more
_NEAR = 2**17  # numbers of the weights that go to all rows before the next ones are read
_FROM = {"tiles": 4, "dots": 2}  # rows from which products are of what is packed, by what there is for that


class Steps:
    """Steps over ``rows`` rows, done in the order in which they are named here whenever ``run`` is called.

    Numbers are float32 in contiguous tensors, but for weights, biases and what is called ``into``: of ``dtype``.
    Threads share a step, and none begins the one behind a ``wait`` before all have done those before it. ``widths`` are
    those of the weights that there are products with. Sizes must be those that are stated: nothing is looked at.
    """

    def __init__(self, dtype: torch.dtype, rows: int, widths: tuple[int, ...]) -> None:
        self._packing = _packing(dtype, rows)
        self._kinds = {width: len(step_code.SMALL) + place for place, width in enumerate(widths)}
        self._function = _compiled(dtype, widths, _packing(dtype))
        self._dtype, self._rows = dtype, rows
        self._widths = len(widths)
        self._packed: tuple[Tensor, Tensor] | None = None  # and where
        self._told = array("q")
        self._held: list[Tensor | None] = []  # whose memory is pointed to

    def norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor, times: int = 1) -> None:
        """``out`` is ``x`` [rows * times, width] by its root mean square, and by ``weight`` [width]."""
        (small,) = struct.unpack("<i", struct.pack("<f", eps))
        self._step(step_code.SMALL.index("norm"), (x, weight, out), small, weight.shape[0], times)
        self._made(out)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, add: bool = False) -> None:
        """``out`` [rows, outs] is ``x`` [rows, width] by the transposed ``weight`` [outs, width]; or has it added."""
        outs, width = weight.shape
        kind = self._kinds[width]
        if self._packed is not None and self._packed[0] is x and self._suit(outs, width):
            x, kind = self._packed[1], kind + self._widths
        self._step(kind, (x, weight, bias, out), outs, int(add))
        self._made(out)

    def gate(self, gate: Tensor, up: Tensor, out: Tensor) -> None:
        """``out`` is ``gate`` by its logistic function and by ``up``, [rows, width] each (Shazeer 2020, SwiGLU)."""
        self._step(step_code.SMALL.index("gate"), (gate, up, out), gate.shape[1])
        self._made(out)

    def pack(self, x: Tensor, into: Tensor) -> None:
        """The next products of ``x`` [rows, width] are by tiles or dots, where rows suffice for it; all wait for this.

        Until ``x`` is made anew: they take its numbers rounded to bfloat16. ``into`` are as many bytes as ``packed``
        says, which nothing else uses before those products are done.
        """
        if self._suit(tiles.SIDE, x.shape[1]):
            self._packed = x, into
            self._step(step_code.SMALL.index("pack"), (x, into), x.shape[1])
            self.wait()

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor, into: Sequence[int]) -> int:
        """What is pointed to, [batch, heads, tokens, dim], is ``x`` rotated by ``cos`` and ``sin`` [rows, dim].

        ``x`` is [rows, heads, dim], the tokens of one text after another. Halves of a head are pairs (Su et al. 2021,
        as in GPT-NeoX). Returns the number by which ``point`` says where that is, which has the shape ``into``.
        """
        return self._step(step_code.SMALL.index("turn"), (None, x, cos, sin), *into[1:])

    def lay(self, x: Tensor, into: Sequence[int]) -> int:
        """The same without a rotation."""
        return self._step(step_code.SMALL.index("lay"), (None, x), *into[1:])

    def point(self, number: int, into: Tensor) -> None:
        """The step of this number writes to ``into`` from now on, which the caller holds."""
        self._told[number * step_code.FIELDS + 2] = into.data_ptr()

    def wait(self) -> None:
        """What comes next uses what the steps so far made."""
        self._told[1 - step_code.FIELDS] = 1

    def run(self) -> None:
        """Does the steps."""
        address, length = self._told.buffer_info()
        machine.run(self._function, (address, length // step_code.FIELDS, self._rows, _NEAR))

    def _suit(self, outs: int, width: int) -> bool:
        """Whether products with weights [outs, width] are of what is packed."""
        if self._packing == "tiles":
            return tiles.suit(self._dtype, outs, width)
        return self._packing == "dots" and dots.suit(self._dtype, width)

    def _made(self, out: Tensor) -> None:
        if self._packed is not None and self._packed[0] is out:
            self._packed = None

    def _step(self, kind: int, tensors: tuple[Tensor | None, ...], *numbers: int) -> int:
        pointers = [0 if one is None else one.data_ptr() for one in tensors]
        told = [kind, 0, *pointers, *numbers]
        self._told.extend(told + [0] * (step_code.FIELDS - len(told)))
        self._held.extend(tensors)
        return len(self._told) // step_code.FIELDS - 1


def packed(dtype: torch.dtype, rows: int, width: int) -> int:
    """Bytes that ``pack`` needs beside weights of a format."""
    return {"tiles": tiles.room, "dots": dots.room, "": lambda *_: 0}[_packing(dtype, rows)](rows, width)


def version(dtype: torch.dtype, width: int) -> str:
    """Which compiler steps are had from for numbers of a format and rows of a width; empty where they are not."""
    found = machine.version(dtype, width, _right)
    return f"{found} with {_packing(dtype)}" if found and _packing(dtype) else found


def ready(dtype: torch.dtype, widths: tuple[int, ...]) -> None:
    """Afterwards steps like these compile nothing."""
    _compiled(dtype, widths, _packing(dtype))


def _packing(dtype: torch.dtype, rows: int = sys.maxsize) -> str:
    """By what there are products of packed rows here, if there are as many as that pays for; empty: by nothing."""
    found = ("tiles" if tiles.have() else "dots" if dots.have() else "") if dtype == torch.bfloat16 else ""
    return found if found and rows >= _FROM[found] else ""


def _right(dtype: torch.dtype) -> bool:
    """Whether products are, which are what is hardest; tests hold the other steps against operations on tensors."""
    shapes = [(2, 3, machine.lanes())]
    if _packing(dtype) == "dots":
        shapes += [(rows, 5, 4 * dots.DEEP) for rows in (2, 9)]  # several sums of a few rows, and one row left over
    if _packing(dtype) == "tiles":
        outs = (2 * machine.threads() + 1) * tiles.SIDE  # one thread meets two tiles of weights at once, and one
        shapes += [(rows, outs, tiles.DEEP) for rows in (tiles.SIDE, tiles.SIDE + 1)]
    return all(_multiplies(dtype, *shape) for shape in shapes)


def _multiplies(dtype: torch.dtype, rows: int, outs: int, width: int) -> bool:
    x, weight = (torch.arange(1, count * width + 1, device="cpu").view(count, -1).to(dtype) for count in (rows, outs))
    made = torch.zeros(rows, outs, dtype=torch.float32, device="cpu")
    steps, wide = Steps(dtype, rows, (width,)), x.float()
    steps.pack(wide, torch.empty(packed(dtype, rows, width), dtype=torch.uint8, device="cpu"))
    steps.product(wide, weight, None, made)
    steps.run()
    return torch.allclose(made, wide @ weight.float().t())


@functools.cache
def _compiled(dtype: torch.dtype, widths: tuple[int, ...], packing: str) -> Any:
    return machine.compiled(step_code.written(FORMATS[dtype], widths, machine.lanes(), packing))
