"""Steps of a layer over a few rows, many in one call, on a CPU: norms, products with weights, rotations.

Owns the machine code. Between two calls of small operations a processor waits longer for Python than a step takes.
Knows no layer and no model.
"""

from __future__ import annotations

import functools
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from longctx.kernels import machine
from longctx.kernels.loops import FORMATS, Loops

REVISION = 1  # to be raised when the way of multiplying changes: what was tried before then holds no more
_SIDE = 2  # rows of weights that go side by side: numbers of x are loaded once for both
_NEAR = 2**17  # numbers of the weights that go to all rows before the next ones are read
_AHEAD = 2**13  # bytes by which weights are asked for before they are needed
_TOLD = ("steps", "COUNT", "ROWS", "NEAR", "number", "count", "barrier")
_FIELDS = 10  # numbers that say what a step is: its kind, whether all wait behind it, and what it works on
_SMALL = ("norm", "turn", "lay")  # the kinds of steps besides products with weights of some width


class Steps:
    """Steps over ``rows`` rows, done in the order in which they are named here whenever ``run`` is called.

    Numbers are float32 in contiguous tensors, but for weights, biases and what is called ``into``: of ``dtype``.
    Threads share a step, and none begins the one behind a ``wait`` before all have done those before it. ``widths`` are
    those of the weights that there are products with. Sizes must be those that are stated: nothing is looked at.
    """

    def __init__(self, dtype: torch.dtype, rows: int, widths: tuple[int, ...]) -> None:
        self._kinds = {width: len(_SMALL) + place for place, width in enumerate(widths)}
        self._function = _compiled(dtype, widths)
        self._rows = rows
        self._told = array("q")
        self._held: list[Tensor | None] = []  # whose memory is pointed to

    def norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor, times: int = 1) -> None:
        """``out`` is ``x`` [rows * times, width] by its root mean square, and by ``weight`` [width]."""
        (small,) = struct.unpack("<i", struct.pack("<f", eps))
        self._step(_SMALL.index("norm"), (x, weight, out), small, weight.shape[0], times)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, add: bool = False) -> None:
        """``out`` [rows, outs] is ``x`` [rows, width] by the transposed ``weight`` [outs, width]; or has it added."""
        outs, width = weight.shape
        self._step(self._kinds[width], (x, weight, bias, out), outs, int(add))

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor, into: Sequence[int]) -> int:
        """What is pointed to, [batch, heads, tokens, dim], is ``x`` rotated by ``cos`` and ``sin`` [rows, dim].

        ``x`` is [rows, heads, dim], the tokens of one text after another. Halves of a head are pairs (Su et al. 2021,
        as in GPT-NeoX). Returns the number by which ``point`` says where that is, which has the shape ``into``.
        """
        return self._step(_SMALL.index("turn"), (None, x, cos, sin), *into[1:])

    def lay(self, x: Tensor, into: Sequence[int]) -> int:
        """The same without a rotation."""
        return self._step(_SMALL.index("lay"), (None, x), *into[1:])

    def point(self, number: int, into: Tensor) -> None:
        """The step of this number writes to ``into`` from now on, which the caller holds."""
        self._told[number * _FIELDS + 2] = into.data_ptr()

    def wait(self) -> None:
        """What comes next uses what the steps so far made."""
        self._told[1 - _FIELDS] = 1

    def run(self) -> None:
        """Does the steps."""
        address, length = self._told.buffer_info()
        machine.run(self._function, (address, length // _FIELDS, self._rows, _NEAR))

    def _step(self, kind: int, tensors: tuple[Tensor | None, ...], *numbers: int) -> int:
        pointers = [0 if one is None else one.data_ptr() for one in tensors]
        told = [kind, 0, *pointers, *numbers]
        self._told.extend(told + [0] * (_FIELDS - len(told)))
        self._held.extend(tensors)
        return len(self._told) // _FIELDS - 1


def version(dtype: torch.dtype, width: int) -> str:
    """Which compiler steps are had from for numbers of a format and rows of a width; empty where they are not."""
    return machine.version(dtype, width, _right)


def ready(dtype: torch.dtype, widths: tuple[int, ...]) -> None:
    """Afterwards steps like these compile nothing."""
    _compiled(dtype, widths)


def _right(dtype: torch.dtype) -> bool:
    """Whether one product is, which is what is hardest; tests hold the other steps against operations on tensors."""
    width = machine.lanes()
    x, weight = (torch.arange(1, count * width + 1, device="cpu").view(count, -1).to(dtype) for count in (2, 3))
    made = torch.zeros(2, 3, dtype=torch.float32, device="cpu")
    steps = Steps(dtype, 2, (width,))
    wide = x.float()
    steps.product(wide, weight, None, made)
    steps.run()
    return torch.allclose(made, wide @ weight.float().t())


@functools.cache
def _compiled(dtype: torch.dtype, widths: tuple[int, ...]) -> Any:
    return machine.compiled(_code(FORMATS[dtype], widths, machine.lanes()))


def _code(stored: str, widths: tuple[int, ...], lanes: int) -> str:
    """``run`` for a thread: its share of every step, and what is to be waited for."""
    code = Loops(lanes)
    kinds: list[Callable[[str], None]] = [functools.partial(one, code, stored) for one in (_norm, _turn, _lay)]
    kinds += [functools.partial(_product, code, stored, width) for width in widths]
    for number, write in enumerate(kinds):
        write(f"step{number}")
    with code.function("void @run(ptr %given)"):
        told = code.told(_TOLD)
        mine, of = code.team(told["number"], told["count"])
        several = code.op(f"icmp ne ptr {told['barrier']}, null")
        with code.loop(0, told["COUNT"]) as at:
            step = code.place("i64", told["steps"], code.mul(at.index, _FIELDS))
            given = f"ptr {step}, i64 {told['ROWS']}, i64 {told['NEAR']}, i64 {mine}, i64 {of}"
            code.choose(code.load("i64", step), {n: f"call void @step{n}({given})" for n in range(len(kinds))})
            waits = code.op(f"select i1 {several}, i64 {code.load('i64', step, 1)}, i64 0")
            code.choose(waits, {1: f"call void {told['barrier']}()"})
    return code.text()


_HEAD = "(ptr %step, i64 %rows, i64 %near, i64 %mine, i64 %of)"


def _told(code: Loops, *names: str) -> list[str]:
    """What a step works on, behind its kind and its wait; names in capitals are numbers."""
    return [code.load("i64" if name.isupper() else "ptr", "%step", 2 + n, of="i64") for n, name in enumerate(names)]


def _norm(code: Loops, stored: str, name: str) -> None:
    lanes, vector = code.lanes, code.vector
    with code.function(f"internal void @{name}{_HEAD}"):
        x, weight, out, small, width, times = _told(code, "x", "weight", "out", "EPS", "WIDTH", "TIMES")
        eps = code.op(f"bitcast i32 {code.op(f'trunc i64 {small} to i32')} to float")
        size = code.op(f"sitofp i64 {width} to float")
        low, high = code.part("%mine", "%of", code.mul("%rows", times))
        with code.loop(low, high) as row:
            line, made = (code.place("float", base, code.mul(row.index, width)) for base in (x, out))
            with code.loop(0, width, lanes, {"sum": (vector, "zeroinitializer")}) as at:
                own = code.wide("float", line, at.index)
                at.next["sum"] = code.fma(own, own, at.now["sum"])
            mean = code.op(f"fdiv float {code.sum(at.now['sum'])}, {size}")
            root = code.op(f"call float @llvm.sqrt.f32(float {code.op(f'fadd float {mean}, {eps}')})")
            scale = code.splat(code.op(f"fdiv float {code.number(1.0)}, {root}"))
            with code.loop(0, width, lanes) as at:
                scaled = code.vec("fmul", code.wide("float", line, at.index), scale)
                code.store(
                    vector, code.vec("fmul", scaled, code.wide(stored, weight, at.index)), made, at.index, "float"
                )


def _turn(code: Loops, stored: str, name: str) -> None:
    with code.function(f"internal void @{name}{_HEAD}"):
        into, x, cos, sin, heads, tokens, dim = _told(code, "into", "x", "cos", "sin", "HEADS", "TOKENS", "DIM")
        half = code.div(dim, 2)
        with _heads(code, stored, x, into, (heads, tokens, dim)) as (row, line, made):
            turns = [code.place("float", base, code.mul(row, dim)) for base in (cos, sin)]
            with code.loop(0, half, code.lanes) as at:
                ends = at.index, code.add(at.index, half)
                one, other = (code.wide("float", line, end) for end in ends)
                for end, own, across in ((ends[0], one, code.op(f"fneg {code.vector} {other}")), (ends[1], other, one)):
                    near, far = (code.wide("float", turn, end) for turn in turns)
                    code.put(stored, code.fma(across, far, code.vec("fmul", own, near)), made, end)


def _lay(code: Loops, stored: str, name: str) -> None:
    with code.function(f"internal void @{name}{_HEAD}"):
        into, x, heads, tokens, dim = _told(code, "into", "x", "HEADS", "TOKENS", "DIM")
        with (
            _heads(code, stored, x, into, (heads, tokens, dim)) as (_, line, made),
            code.loop(0, dim, code.lanes) as at,
        ):
            code.put(stored, code.wide("float", line, at.index), made, at.index)


@contextmanager
def _heads(code: Loops, stored: str, x: str, into: str, shape: tuple[str, str, str]) -> Iterator[tuple[str, str, str]]:
    """For every head of every row of this thread: the row, where the head's numbers are, and where they go."""
    heads, tokens, dim = shape
    low, high = code.part("%mine", "%of", code.mul("%rows", heads))
    with code.loop(low, high) as at:
        row, head = code.div(at.index, heads), code.rem(at.index, heads)
        text, token = code.div(row, tokens), code.rem(row, tokens)
        before = code.mul(code.add(code.mul(text, heads), head), tokens)
        place = code.mul(code.add(before, token), dim)
        yield row, code.place("float", x, code.mul(at.index, dim)), code.place(stored, into, place)


def _product(code: Loops, stored: str, width: int, name: str) -> None:
    """A share of the weights, block by block: each block goes to all rows before the next one is read."""
    most = code.lanes // 2  # rows whose sums fit the registers; more come in turns, over a block that is in a cache
    for rows in range(1, most + 1):
        _tile(code, stored, width, rows, f"{name}.{rows}")
    with code.function(f"internal void @{name}{_HEAD}"):
        x, weight, bias, out, outs, added = _told(code, "x", "weight", "bias", "out", "OUTS", "ADDED")
        none, adds = code.null(bias), code.op(f"icmp ne i64 {added}, 0")
        biased = code.op(f"xor i1 {none}, true")
        bias = code.op(f"select i1 {none}, ptr {weight}, ptr {bias}")  # something that can be read
        low, high = code.part("%mine", "%of", code.div(code.add(outs, _SIDE - 1), _SIDE))
        block = code.most_of(code.div("%near", width * _SIDE), 1)
        # the step of a loop is a number of the code, and that of the blocks is not
        blocks = code.div(code.add(code.sub(high, low), code.add(block, -1)), block)
        with code.loop(0, blocks) as at:
            first = code.add(low, code.mul(at.index, block))
            begin, end = (code.mul(n, _SIDE) for n in (first, code.least_of(code.add(first, block), high)))
            with code.loop(0, "%rows", most) as row:
                line = code.place("float", x, code.mul(row.index, width))
                made = code.place("float", out, code.mul(row.index, outs))
                pointers = f"ptr {line}, ptr {weight}, ptr {bias}, ptr {made}"
                given = f"{pointers}, i64 {outs}, i64 {begin}, i64 {end}, i1 {biased}, i1 {adds}"
                rest = code.least_of(code.sub("%rows", row.index), most)
                code.choose(rest, {n: f"call void @{name}.{n}({given})" for n in range(1, most + 1)})


def _tile(code: Loops, stored: str, width: int, rows: int, name: str) -> None:
    """Sums of ``rows`` rows of x and the rows of weights from ``low`` to ``high``, each to its place in out."""
    lanes, vector, places = code.lanes, code.vector, [(row, s) for row in range(rows) for s in range(_SIDE)]
    # several sums of a few rows, so that one need not wait for the last
    turns = max(n for n in (1, 2, 4, 8) if n == 1 or (n * len(places) <= 8 and not width // lanes % n))
    given = "ptr %x, ptr %w, ptr %bias, ptr %out, i64 %outs, i64 %low, i64 %high, i1 %biased, i1 %adds"
    with code.function(f"internal void @{name}({given})"), code.loop("%low", "%high", _SIDE) as outer:
        last = code.add("%outs", -1)  # which goes beside itself where their number is odd
        own = [code.least_of(code.add(outer.index, s), last) for s in range(_SIDE)]
        weights = [code.place(stored, "%w", code.mul(one, width)) for one in own]
        zeros = {f"a{turn}.{row}.{s}": (vector, "zeroinitializer") for turn in range(turns) for row, s in places}
        with code.loop(0, width, turns * lanes, zeros) as inner:
            for turn in range(turns):
                at = code.add(inner.index, turn * lanes)
                wide = [code.wide(stored, weight, at) for weight in weights]
                for weight in weights:
                    code.ask(code.place("i8", code.place(stored, weight, at), _AHEAD))
                for row in range(rows):
                    x = code.wide("float", "%x", code.add(at, row * width))
                    for s in range(_SIDE):
                        key = f"a{turn}.{row}.{s}"
                        inner.next[key] = code.fma(wide[s], x, inner.now[key])
        more = [code.op(f"select i1 %biased, float {code.one(stored, '%bias', one)}, float 0.0") for one in own]
        beside: list[str] = []  # what is stored where a last one does not stand beside itself
        for row, s in places:
            total = inner.now[f"a0.{row}.{s}"]
            for turn in range(1, turns):
                total = code.vec("fadd", total, inner.now[f"a{turn}.{row}.{s}"])
            into = code.place("float", "%out", code.add(code.mul("%outs", row), own[s]))
            old = code.op(f"select i1 %adds, float {code.load('float', into)}, float 0.0")
            found = code.op(f"fadd float {code.op(f'fadd float {code.sum(total)}, {more[s]}')}, {old}")
            if s:
                beside.append(f"store float {found}, ptr {into}, align 2")
            else:
                code.do(f"store float {found}, ptr {into}, align 2")
        new = code.op(f"zext i1 {code.op(f'icmp slt i64 {code.add(outer.index, _SIDE - 1)}, %outs')} to i64")
        code.choose(new, {1: "\n  ".join(beside)})
