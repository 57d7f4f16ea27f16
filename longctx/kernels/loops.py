"""Writes loops over vectors of float32 as LLVM reads them.

Owns names, blocks and the steps that kernels share: widening, rounding, sums of a vector. Knows no kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

FORMATS = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "i16"}  # how LLVM calls what is stored
_NOTHING: Mapping[str, tuple[str, str]] = MappingProxyType({})
_LINE = 64  # bytes that come from memory together


@dataclass(slots=True)
class Turn:
    """What a loop's body sees: its index and what is carried; ``next`` is to be filled with what the next turn sees."""

    index: str
    now: dict[str, str]
    next: dict[str, str] = field(default_factory=dict)


class Loops:
    """Code with vectors of ``lanes`` numbers. A value is the name of what a line gives, or a number as LLVM writes it.

    Lengths and indices are ``i64``. A pointer has no kind; what is read through it has.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes, self.vector, self.whole = lanes, f"<{lanes} x float>", f"<{lanes} x i32>"
        v, n = self.vector, lanes
        self._lines = [
            f"declare {v} @llvm.fma.v{n}f32({v}, {v}, {v})",
            f"declare {v} @llvm.maxnum.v{n}f32({v}, {v})",
            "declare float @llvm.maxnum.f32(float, float)",
            "declare float @llvm.sqrt.f32(float)",
            f"declare float @llvm.vector.reduce.fadd.v{n}f32(float, {v})",
            f"declare float @llvm.vector.reduce.fmax.v{n}f32({v})",
            f"declare {v} @llvm.masked.load.v{n}f32.p0(ptr, i32, <{n} x i1>, {v})",
            "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
        ]
        self._count, self._label = 0, ""

    def text(self) -> str:
        """All that was written."""
        return "\n".join(self._lines)

    def declare(self, function: str) -> None:
        """A function that is not written here; before all that are."""
        self._lines.append(f"declare {function}")

    def do(self, line: str) -> None:
        self._lines.append(f"  {line}")

    def op(self, line: str) -> str:
        """Writes a line that gives a value, and returns its name."""
        self._count += 1
        self.do(f"%t{self._count} = {line}")
        return f"%t{self._count}"

    def label(self) -> str:
        """A name for a block that is still to be written."""
        self._count += 1
        return f"b{self._count}"

    def at(self, label: str) -> None:
        """What follows belongs to the block ``label``."""
        self._lines.append(f"{label}:")
        self._label = label

    @contextmanager
    def function(self, head: str) -> Iterator[None]:
        self._lines.append(f"define {head} {{")
        self.at("entry")
        yield
        self._lines += ["  ret void", "}"]

    @contextmanager
    def loop(
        self, low: object, high: object, step: int = 1, carried: Mapping[str, tuple[str, str]] = _NOTHING
    ) -> Iterator[Turn]:
        """Its body for every index from ``low`` to before ``high``.

        ``carried`` has a kind and a first value by name. Behind the loop ``now`` holds the last ones.
        """
        entry, head, body, done = self._label, self.label(), self.label(), self.label()
        self.do(f"br label %{head}")
        self.at(head)
        place = len(self._lines)
        turn = Turn(f"%{head}.i", {name: f"%{head}.{name}" for name in carried})
        more = self.op(f"icmp slt i64 {turn.index}, {high}")
        self.do(f"br i1 {more}, label %{body}, label %{done}")
        self.at(body)
        yield turn
        following = self.op(f"add i64 {turn.index}, {step}")
        latch = self._label
        self.do(f"br label %{head}")
        seen = [(turn.index, "i64", str(low), following)]
        seen += [(turn.now[name], kind, first, turn.next[name]) for name, (kind, first) in carried.items()]
        self._lines[place:place] = [
            f"  {name} = phi {kind} [ {first}, %{entry} ], [ {later}, %{latch} ]" for name, kind, first, later in seen
        ]
        self.at(done)

    def choose(self, which: str, lines: Mapping[int, str]) -> None:
        """Does the line that has the number ``which``; none for other numbers."""
        end, labels = self.label(), {number: self.label() for number in lines}
        cases = " ".join(f"i64 {number}, label %{name}" for number, name in labels.items())
        self.do(f"switch i64 {which}, label %{end} [ {cases} ]")
        for number, line in lines.items():
            self.at(labels[number])
            self.do(line)
            self.do(f"br label %{end}")
        self.at(end)

    def mark(self, condition: str, place: str) -> None:
        """Writes 1, a length, to ``place`` where a condition holds."""
        self.choose(self.op(f"zext i1 {condition} to i64"), {1: f"store i64 1, ptr {place}"})

    def unless(self, condition: str, value: str, other: Callable[[], str]) -> str:
        """The length ``value`` where a condition holds, and what ``other`` writes where it does not."""
        more, done, entry = self.label(), self.label(), self._label
        self.do(f"br i1 {condition}, label %{done}, label %{more}")
        self.at(more)
        made, left = other(), self._label
        self.do(f"br label %{done}")
        self.at(done)
        return self.op(f"phi i64 [ {value}, %{entry} ], [ {made}, %{left} ]")

    def null(self, pointer: str) -> str:
        """Whether a pointer points nowhere."""
        return self.op(f"icmp eq ptr {pointer}, null")

    def told(self, names: Sequence[str]) -> dict[str, str]:
        """The numbers that the function of ``%given`` is told: those whose names are in capitals are no pointers."""
        kinds = {name: "i64" if name.isupper() else "ptr" for name in names}
        return {name: self.load(kind, "%given", place, of="i64") for place, (name, kind) in enumerate(kinds.items())}

    def share(self, number: str, count: str, units: str) -> tuple[str, str]:
        """This thread's part of ``units``, from and to before; ``number`` and ``count`` point to who says which."""
        return self.part(*self.team(number, count), units)

    def team(self, number: str, count: str) -> tuple[str, str]:
        """Which thread this is, and of how many; those pointers point to who says so, or nowhere."""
        # the team may be smaller than was asked for
        mine = self.unless(self.null(number), "0", lambda: self._asked(number))
        return mine, self.unless(self.null(count), "1", lambda: self._asked(count))

    def part(self, mine: str, of: str, units: str) -> tuple[str, str]:
        """The part of ``units`` of one thread ``of`` several, from and to before."""
        low, high = (self.op(f"mul i64 {units}, {one}") for one in (mine, self.add(mine, 1)))
        return self.div(low, of), self.div(high, of)

    def _asked(self, function: str) -> str:
        return self.op(f"zext i32 {self.op(f'call i32 {function}()')} to i64")

    def add(self, one: object, other: object) -> str:
        return self.op(f"add i64 {one}, {other}")

    def mul(self, one: object, other: object) -> str:
        return self.op(f"mul i64 {one}, {other}")

    def sub(self, one: object, other: object) -> str:
        return self.op(f"sub i64 {one}, {other}")

    def div(self, one: object, other: object) -> str:
        return self.op(f"sdiv i64 {one}, {other}")

    def rem(self, one: object, other: object) -> str:
        return self.op(f"srem i64 {one}, {other}")

    def least_of(self, one: object, other: object) -> str:
        return self.op(f"select i1 {self.op(f'icmp slt i64 {one}, {other}')}, i64 {one}, i64 {other}")

    def most_of(self, one: object, other: object) -> str:
        return self.op(f"select i1 {self.op(f'icmp sgt i64 {one}, {other}')}, i64 {one}, i64 {other}")

    def place(self, kind: str, base: str, index: object) -> str:
        """The address of the ``index``th of ``kind`` behind ``base``."""
        return self.op(f"getelementptr {kind}, ptr {base}, i64 {index}")

    def load(self, kind: str, base: str, index: object = 0, of: str = "") -> str:
        """``kind`` at the ``index``th of ``of`` behind ``base``, which is as ``kind`` where that is not named."""
        return self.op(f"load {kind}, ptr {self.place(of or kind, base, index)}, align 2")

    def store(self, kind: str, value: str, base: str, index: object = 0, of: str = "") -> None:
        self.do(f"store {kind} {value}, ptr {self.place(of or kind, base, index)}, align 2")

    def number(self, value: float) -> str:
        """A number of float32 as LLVM writes it."""
        (narrow,) = struct.unpack("<f", struct.pack("<f", value))
        return f"0x{struct.unpack('<Q', struct.pack('<d', narrow))[0]:016X}"

    def constant(self, value: float) -> str:
        """A vector of one number."""
        return f"<{', '.join([f'float {self.number(value)}'] * self.lanes)}>"

    def integers(self, values: Sequence[int]) -> str:
        return f"<{', '.join(f'i32 {value}' for value in values)}>"

    def splat(self, value: str, kind: str = "float") -> str:
        """A vector of one value."""
        one = self.op(f"insertelement <{self.lanes} x {kind}> poison, {kind} {value}, i64 0")
        none = f"<{self.lanes} x {kind}> poison"
        return self.op(f"shufflevector <{self.lanes} x {kind}> {one}, {none}, {self.whole} zeroinitializer")

    def vec(self, name: str, one: str, other: str) -> str:
        """The operation ``name`` on two vectors."""
        return self.op(f"{name} {self.vector} {one}, {other}")

    def fma(self, one: str, other: str, added: str) -> str:
        """One times other, and ``added`` to it."""
        v = self.vector
        return self.op(f"call {v} @llvm.fma.v{self.lanes}f32({v} {one}, {v} {other}, {v} {added})")

    def greater(self, one: str, other: str) -> str:
        v = self.vector
        return self.op(f"call {v} @llvm.maxnum.v{self.lanes}f32({v} {one}, {v} {other})")

    def select(self, mask: str, one: str, other: str) -> str:
        v = self.vector
        return self.op(f"select <{self.lanes} x i1> {mask}, {v} {one}, {v} {other}")

    def select_all(self, condition: str, one: str, other: str) -> str:
        """One vector or the other by one condition."""
        return self.op(f"select i1 {condition}, {self.vector} {one}, {self.vector} {other}")

    def sum(self, value: str) -> str:
        """The sum of a vector's numbers."""
        return self.op(
            f"call reassoc float @llvm.vector.reduce.fadd.v{self.lanes}f32(float 0.0, {self.vector} {value})"
        )

    def highest(self, value: str) -> str:
        """The largest of a vector's numbers."""
        return self.op(f"call float @llvm.vector.reduce.fmax.v{self.lanes}f32({self.vector} {value})")

    def wide(self, stored: str, base: str, index: object) -> str:
        """The vector at the ``index``th number of the format ``stored`` behind ``base``, in float32."""
        raw = self.load(f"<{self.lanes} x {stored}>", base, index, of=stored)
        if stored == "float":
            return raw
        if stored == "half":
            return self.op(f"fpext <{self.lanes} x half> {raw} to {self.vector}")
        bits = self.op(f"zext <{self.lanes} x i16> {raw} to {self.whole}")
        return self.op(f"bitcast {self.whole} {self.op(f'shl {self.whole} {bits}, {self.same(16)}')} to {self.vector}")

    def one(self, stored: str, base: str, index: object) -> str:
        """The one number there, in float32."""
        raw = self.load(stored, base, index)
        if stored == "i16":
            bits = self.op(f"shl i32 {self.op(f'zext i16 {raw} to i32')}, 16")
            return self.op(f"bitcast i32 {bits} to float")
        return raw if stored == "float" else self.op(f"fpext half {raw} to float")

    def put(self, stored: str, value: str, base: str, index: object) -> None:
        """Stores a vector there in the format ``stored``: the nearest number of it, of two the even one."""
        if stored == "half":
            value = self.op(f"fptrunc {self.vector} {value} to <{self.lanes} x half>")
        elif stored == "i16":
            value = self.op(f"trunc {self.whole} {self.nearest(value)} to <{self.lanes} x i16>")
        self.store(f"<{self.lanes} x {stored}>", value, base, index, of=stored)

    def nearest(self, value: str) -> str:
        """The nearest numbers of bfloat16 as integers of 32 bits."""
        none = self.op(f"fcmp uno {self.vector} {value}, {value}")
        bits, n = self.op(f"bitcast {self.vector} {value} to {self.whole}"), self.lanes
        odd = self.op(f"and {self.whole} {self.op(f'lshr {self.whole} {bits}, {self.same(16)}')}, {self.same(1)}")
        bits = self.op(f"add {self.whole} {self.op(f'add {self.whole} {bits}, {self.same(0x7FFF)}')}, {odd}")
        bits = self.op(f"lshr {self.whole} {bits}, {self.same(16)}")
        return self.op(f"select <{n} x i1> {none}, {self.whole} {self.same(0x7FC0)}, {self.whole} {bits}")

    def line(self, stored: str) -> int:
        """How many numbers of the format ``stored`` come from memory together."""
        return _LINE // {"float": 4, "half": 2, "i16": 2}[stored]

    def ask(self, place: str) -> None:
        """Has the memory send what is at ``place``, which need not be anything."""
        self.do(f"call void @llvm.prefetch.p0(ptr {place}, i32 0, i32 3, i32 1)")

    def shuffled(self, one: str, other: str, order: Sequence[int]) -> str:
        """A vector of numbers of two, which are counted through."""
        v = self.vector
        return self.op(f"shufflevector {v} {one}, {v} {other}, {self.whole} {self.integers(order)}")

    def same(self, value: int) -> str:
        """A vector of one integer."""
        return self.integers([value] * self.lanes)
