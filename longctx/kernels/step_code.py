"""What the steps of a layer do, as machine code for one thread of several.

Owns the loops of each kind of step, and how one is told what it works on. Knows neither tensors nor the order of steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from longctx.kernels import dots, tiles
from longctx.kernels.elementary import exp
from longctx.kernels.loops import Loops

SMALL = ("norm", "turn", "lay", "gate", "pack")  # the kinds of steps besides products with weights of some width
FIELDS = 10  # numbers that say what a step is: its kind, whether all wait behind it, and what it works on
_SIDE = 2  # rows of weights that go side by side: numbers of x are loaded once for both
_AHEAD = 2**13  # bytes by which weights are asked for before they are needed
_TOLD = ("steps", "COUNT", "ROWS", "NEAR", "number", "count", "barrier")


def written(stored: str, widths: tuple[int, ...], lanes: int, packing: str) -> str:
    """``run`` for a thread: its share of every step, and what is to be waited for.

    ``packing`` says by what there are products of what is packed, "tiles" or "dots", or that there are none.
    """
    code = Loops(lanes)
    if packing:
        {"tiles": tiles, "dots": dots}[packing].declare(code)
    small = (_norm, _turn, _lay, _gate, {"tiles": _pack, "dots": _round, "": _nothing}[packing])
    kinds: list[Callable[[str], None]] = [functools.partial(one, code, stored) for one in small]
    kinds += [functools.partial(_product, code, stored, width, False) for width in widths]
    if packing == "tiles":
        kinds += [functools.partial(_tiled, code, width) for width in widths]
    if packing == "dots":
        kinds += [functools.partial(_product, code, stored, width, True) for width in widths]
    for number, write in enumerate(kinds):
        write(f"step{number}")
    with code.function("void @run(ptr %given)"):
        told = code.told(_TOLD)
        mine, of = code.team(told["number"], told["count"])
        several = code.op(f"icmp ne ptr {told['barrier']}, null")
        with code.loop(0, told["COUNT"]) as at:
            step = code.place("i64", told["steps"], code.mul(at.index, FIELDS))
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


def _gate(code: Loops, stored: str, name: str) -> None:
    """A number by its logistic function, and by another; exponentials are those of numbers below 0."""
    with code.function(f"internal void @{name}{_HEAD}"):
        gate, up, out, width = _told(code, "gate", "up", "out", "WIDTH")
        low, high = code.part("%mine", "%of", code.div(code.mul("%rows", width), code.lanes))
        one = code.constant(1.0)
        with code.loop(low, high) as at:
            place = code.mul(at.index, code.lanes)
            own, other = (code.wide("float", base, place) for base in (gate, up))
            size = code.op(
                f"and {code.whole} {code.op(f'bitcast {code.vector} {own} to {code.whole}')}, {code.same(2**31 - 1)}"
            )
            far = code.op(f"fneg {code.vector} {code.op(f'bitcast {code.whole} {size} to {code.vector}')}")
            small = exp(code, far)
            below = code.op(f"fcmp olt {code.vector} {own}, zeroinitializer")
            share = code.vec("fdiv", code.select(below, small, one), code.vec("fadd", one, small))
            code.store(code.vector, code.vec("fmul", code.vec("fmul", own, share), other), out, place, of="float")


def _pack(code: Loops, stored: str, name: str) -> None:
    with code.function(f"internal void @{name}{_HEAD}"):
        x, into, width = _told(code, "x", "into", "WIDTH")
        tiles.pack(code, (x, into, width), ("%mine", "%of"), "%rows")


def _round(code: Loops, stored: str, name: str) -> None:
    with code.function(f"internal void @{name}{_HEAD}"):
        x, into, width = _told(code, "x", "into", "WIDTH")
        dots.pack(code, (x, into, width), ("%mine", "%of"), "%rows")


def _nothing(code: Loops, stored: str, name: str) -> None:
    with code.function(f"internal void @{name}{_HEAD}"):
        pass


def _tiled(code: Loops, width: int, name: str) -> None:
    tiles.tile(code, name, width)
    with code.function(f"internal void @{name}{_HEAD}"):
        given = _multiplied(code)
        tiles.product(code, name, width, given, ("%mine", "%of"), "%rows")


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


def _multiplied(code: Loops) -> tuple[str, ...]:
    """What a product works on: x, weights, bias, out, its outs, and whether a bias and what is in out are added."""
    x, weight, bias, out, outs, added = _told(code, "x", "weight", "bias", "out", "OUTS", "ADDED")
    none, adds = code.null(bias), code.op(f"icmp ne i64 {added}, 0")
    biased = code.op(f"xor i1 {none}, true")
    bias = code.op(f"select i1 {none}, ptr {weight}, ptr {bias}")  # something that can be read
    return x, weight, bias, out, outs, biased, adds


def _product(code: Loops, stored: str, width: int, dotted: bool, name: str) -> None:
    """A share of the weights, block by block: each block goes to all rows before the next one is read."""
    most = code.lanes // 2  # rows whose sums fit the registers; more come in turns, over a block that is in a cache
    for rows in range(1, most + 1):
        _tile(code, stored, width, rows, dotted, f"{name}.{rows}")
    with code.function(f"internal void @{name}{_HEAD}"):
        x, weight, bias, out, outs, biased, adds = _multiplied(code)
        low, high = code.part("%mine", "%of", code.div(code.add(outs, _SIDE - 1), _SIDE))
        block = code.most_of(code.div("%near", width * _SIDE), 1)
        # the step of a loop is a number of the code, and that of the blocks is not
        blocks = code.div(code.add(code.sub(high, low), code.add(block, -1)), block)
        with code.loop(0, blocks) as at:
            first = code.add(low, code.mul(at.index, block))
            begin, end = (code.mul(n, _SIDE) for n in (first, code.least_of(code.add(first, block), high)))
            with code.loop(0, "%rows", most) as row:
                line = code.place("i16" if dotted else "float", x, code.mul(row.index, width))
                made = code.place("float", out, code.mul(row.index, outs))
                pointers = f"ptr {line}, ptr {weight}, ptr {bias}, ptr {made}"
                given = f"{pointers}, i64 {outs}, i64 {begin}, i64 {end}, i1 {biased}, i1 {adds}"
                rest = code.least_of(code.sub("%rows", row.index), most)
                code.choose(rest, {n: f"call void @{name}.{n}({given})" for n in range(1, most + 1)})


def _tile(code: Loops, stored: str, width: int, rows: int, dotted: bool, name: str) -> None:
    """Sums of ``rows`` rows of x and the rows of weights from ``low`` to ``high``, each to its place in out.

    ``dotted``: x is packed, and meets weights as they are.
    """
    vector, places = code.vector, [(row, s) for row in range(rows) for s in range(_SIDE)]
    deep, meet = (dots.DEEP, functools.partial(dots.added, code)) if dotted else (code.lanes, code.fma)
    read = functools.partial(dots.load, code) if dotted else functools.partial(code.wide, stored)
    read_x = read if dotted else functools.partial(code.wide, "float")
    # several sums of a few rows, so that one need not wait for the last
    turns = max(n for n in (1, 2, 4, 8) if n == 1 or (n * len(places) <= 8 and not width // deep % n))
    given = "ptr %x, ptr %w, ptr %bias, ptr %out, i64 %outs, i64 %low, i64 %high, i1 %biased, i1 %adds"
    with code.function(f"internal void @{name}({given})"), code.loop("%low", "%high", _SIDE) as outer:
        last = code.add("%outs", -1)  # which goes beside itself where their number is odd
        own = [code.least_of(code.add(outer.index, s), last) for s in range(_SIDE)]
        weights = [code.place(stored, "%w", code.mul(one, width)) for one in own]
        zeros = {f"a{turn}.{row}.{s}": (vector, "zeroinitializer") for turn in range(turns) for row, s in places}
        with code.loop(0, width, turns * deep, zeros) as inner:
            for turn in range(turns):
                at = code.add(inner.index, turn * deep)
                wide = [read(weight, at) for weight in weights]
                for weight in weights:
                    code.ask(code.place("i8", code.place(stored, weight, at), _AHEAD))
                for row in range(rows):
                    x = read_x("%x", code.add(at, row * width))
                    for s in range(_SIDE):
                        key = f"a{turn}.{row}.{s}"
                        inner.next[key] = meet(wide[s], x, inner.now[key])
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
