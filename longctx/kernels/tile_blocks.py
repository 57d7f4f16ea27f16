"""Blocks of keys as tiles work on them: multiplied by sixteen rows, weighed, and their values added up.

Owns these steps as code. A vector has one key's logits of sixteen rows, or of eight rows those of two keys, so that
softmax needs no sum across a vector. Knows no kernel.
"""

from __future__ import annotations

import functools
import math

from longctx.kernels import blocks, tiles
from longctx.kernels.blocks import LOWEST
from longctx.kernels.elementary import power
from longctx.kernels.loops import Loops
from longctx.kernels.tiles import BYTES, DEEP, SIDE

BLOCK = 128  # keys whose weights are made before outputs are scaled: with their values they stay in a near cache
HALF = SIDE // 2  # so few rows leave half of a vector free: then it has the logits of two keys
_STEPS = BLOCK // DEEP
_SUMS = 4  # tiles of outputs that are summed at a time


def scratch(code: Loops, width: int) -> dict[str, str]:
    """What a thread works in: copies of keys and values that are no whole block, and what is made of a block."""
    numbers = {
        "k": ("i16", BLOCK * width),
        "v": ("i16", BLOCK * width),
        "mixed": ("i16", BLOCK * width),
        "logits": ("float", BLOCK * SIDE),
        "weights": ("i16", BLOCK * SIDE),
        "fades": ("float", SIDE),
        "made": ("float", _SUMS * SIDE * SIDE),
    }
    return {name: code.op(f"alloca [{count} x {kind}], align 64") for name, (kind, count) in numbers.items()}


def standing(
    code: Loops, width: int, states: list[tuple[str, str]], at: str, left: str, scratch: dict[str, str]
) -> list[tuple[str, str]]:
    """Where a block's keys and values begin and how many numbers apart they are: in a copy, if there are too few.

    ``states``: the same of all of them, of which the block begins with the one ``at`` a place.

    Behind the ``left`` ones that has zeros, so that nothing is read that is not there.
    """
    full, vector = code.op(f"icmp eq i64 {left}, {BLOCK}"), f"<{SIDE} x i16>"
    some = code.op(f"select i1 {full}, i64 0, i64 {left}")
    none = code.op(f"select i1 {full}, i64 {BLOCK}, i64 {left}")
    found = []
    for name, (base, stride) in zip(("k", "v"), states, strict=True):
        own = code.place("i16", base, code.mul(at, stride))
        with code.loop(0, some) as key, code.loop(0, width, SIDE) as part:
            held = code.load(vector, code.place("i16", own, code.mul(key.index, stride)), part.index, of="i16")
            code.store(vector, held, scratch[name], code.add(code.mul(key.index, width), part.index), of="i16")
        with code.loop(code.mul(none, width), BLOCK * width, SIDE) as part:
            code.store(vector, "zeroinitializer", scratch[name], part.index, of="i16")
        place = code.op(f"select i1 {full}, ptr {own}, ptr {scratch[name]}")
        found.append((place, code.op(f"select i1 {full}, i64 {stride}, i64 {width}")))
    return found


def interleave(code: Loops, width: int, found: list[tuple[str, str]], mixed: str) -> None:
    """A block's values as products take them: two keys' numbers side by side, tile by tile.

    What the memory is to send next, the keys and values behind the block, is asked for meanwhile.
    """
    values, stride = found[1]
    across, words, kind = width // SIDE, BYTES // 4, f"<{DEEP} x i16>"
    orders = [[half * SIDE + n // 2 + (n % 2) * DEEP for n in range(DEEP)] for half in (0, 1)]
    with code.loop(0, _STEPS) as step, code.loop(0, SIDE) as pair:
        which = code.mul(code.add(code.mul(step.index, SIDE), pair.index), 2)
        rows = [code.place("i16", values, code.mul(code.add(which, odd), stride)) for odd in (0, 1)]
        for base, by in found:
            for odd in (0, 1):
                ahead = code.place("i16", base, code.mul(code.add(which, BLOCK + odd), by))
                for line in range(0, width, code.line("i16")):
                    code.ask(code.place("i16", ahead, line))
        begin = code.place("i32", mixed, code.add(code.mul(step.index, across * words), code.mul(pair.index, SIDE)))
        for part in range(width // DEEP):
            one, other = (code.load(kind, row, part * DEEP, of="i16") for row in rows)
            for half, order in enumerate(orders):
                picked = f"<{', '.join(f'i32 {n}' for n in order)}>"
                both = code.op(f"shufflevector {kind} {one}, {kind} {other}, <{DEEP} x i32> {picked}")
                code.store(kind, both, begin, (2 * part + half) * words, of="i32")


def pack(code: Loops, width: int, half: bool, query: str, packed: str, rows: str) -> None:
    """The rows as products take them; of ``half`` a vector also as its other half, each beside zeros."""
    other = code.place("i8", packed, width * SIDE * 2) if half else ""
    tiles.pack(code, (query, packed, str(width)), ("0", "1"), rows, other)


def join(code: Loops, sums: str) -> None:
    """Afterwards the sums of rows in half a vector are those of both halves."""
    own = code.wide("float", sums, 0)
    code.store(code.vector, code.vec("fadd", own, tiles.swapped(code, own)), sums, 0, of="float")


def multiply(code: Loops, width: int, half: bool, packed: str, keys: tuple[str, str], logits: str) -> None:
    """Products of some rows and a block's keys: of each key those of all rows, or of two keys side by side."""
    base, apart = keys
    stride, parts = code.mul(apart, 2), width // DEEP
    with code.loop(0, BLOCK, 2 * DEEP if half else DEEP) as at:
        for one in range(2):
            code.do(f"call void @llvm.x86.tilezero(i8 {one})")
        for part in range(parts):
            for turn in range(2 if half else 1):
                place = code.place("i8", packed, (turn * parts + part) * BYTES)
                code.do(f"call void @llvm.x86.tileloadd64(i8 4, ptr {place}, i64 64)")
                for one in range(2):
                    group = 2 * one + turn if half else one
                    row = code.mul(code.add(at.index, group * SIDE), apart)
                    place = code.place("i16", base, code.add(row, part * DEEP))
                    code.do(f"call void @llvm.x86.tileloadd64(i8 {2 + one}, ptr {place}, i64 {stride})")
                    code.do(f"call void @llvm.x86.tdpbf16ps(i8 {one}, i8 {2 + one}, i8 4)")
        begin = code.div(at.index, 2) if half else at.index
        for one in range(2):
            place = code.place("float", logits, code.mul(code.add(begin, one * SIDE), SIDE))
            code.do(f"call void @llvm.x86.tilestored64(i8 {one}, ptr {place}, i64 64)")


def hide(code: Loops, hidden: str, begin: str, left: str, logits: str) -> None:
    """Adds what is ``hidden`` to the logits of a block's ``left`` keys from the ``begin``th on, if those are in it."""
    first = code.least_of(code.most_of(begin, 0), left)
    with code.loop(first, left) as key:
        more = code.wide("float", hidden, code.mul(code.sub(key.index, begin), SIDE))
        place = code.mul(key.index, SIDE)
        code.store(code.vector, code.vec("fadd", code.wide("float", logits, place), more), logits, place, of="float")


def weigh(code: Loops, half: bool, scale: str, left: str, state: tuple[str, str], scratch: dict[str, str]) -> None:
    """A block's weights as products take them, their sums, and by how much what was before fades.

    The highest logits of the ``state`` are not scaled, so that one that is large leaves those beside it their digits.
    ``scale``: a vector of what they are multiplied by, above 0, for powers of two: those have less to do.
    """
    (top, sums), logits, vectors = state, scratch["logits"], SIDE if half else DEEP
    _missing(code, half, left, logits)
    before = code.wide("float", top, 0)
    high = code.greater(before, _highest(code, half, logits))
    code.store(code.vector, high, top, 0, of="float")

    def weight(logit: str) -> str:
        return power(code, code.vec("fmul", code.vec("fsub", logit, high), scale))

    fade = weight(before)
    code.store(code.vector, fade, scratch["fades"], 0, of="float")
    with code.loop(0, _STEPS, carried={"sum": (code.vector, "zeroinitializer")}) as step:
        pairs, totals = [], [step.now["sum"], "zeroinitializer"]  # of as many as need not wait for one another
        for pair in range(vectors // 2):
            both = []
            for odd in (0, 1):
                place = code.add(code.mul(step.index, vectors * SIDE), (2 * pair + odd) * SIDE)
                both.append(weight(code.wide("float", logits, place)))
            totals = [code.vec("fadd", *own) for own in zip(totals, both, strict=True)]
            pairs.append(_paired(code, *both))
        for row, own in enumerate(blocks.turned(code, pairs)):
            place = code.add(code.mul(step.index, SIDE * SIDE), row * SIDE)
            code.store(code.vector, own, scratch["weights"], place, of="float")
        step.next["sum"] = code.vec("fadd", *totals)
    faded = code.vec("fmul", code.wide("float", sums, 0), fade)
    code.store(code.vector, code.vec("fadd", faded, step.now["sum"]), sums, 0, of="float")


def _missing(code: Loops, half: bool, left: str, logits: str) -> None:
    """The logits of keys that a block has no more of are the lowest, those behind the ``left`` ones."""
    low = code.constant(LOWEST)
    if not half:
        with code.loop(left, BLOCK) as key:
            code.store(code.vector, low, logits, code.mul(key.index, SIDE), of="float")
        return
    # a vector has the logits of a key and of the one sixteen behind it
    with code.loop(code.op(f"select i1 {code.op(f'icmp slt i64 {left}, {BLOCK}')}, i64 0, i64 {BLOCK}"), BLOCK) as key:
        group, n = code.div(key.index, DEEP), code.rem(key.index, DEEP)
        vector = code.add(code.mul(group, SIDE), code.rem(n, SIDE))
        place = code.add(code.mul(vector, SIDE), code.mul(code.div(n, SIDE), HALF))
        there = code.op(f"icmp slt i64 {key.index}, {left}")
        held = code.load(f"<{HALF} x float>", logits, place, of="float")
        none = f"<{', '.join([f'float {code.number(LOWEST)}'] * HALF)}>"
        found = code.op(f"select i1 {there}, <{HALF} x float> {held}, <{HALF} x float> {none}")
        code.store(f"<{HALF} x float>", found, logits, place, of="float")


def _highest(code: Loops, half: bool, logits: str) -> str:
    """The highest of a block's logits in each row."""
    vectors = SIDE if half else DEEP
    carried = {f"m{n}": (code.vector, code.constant(-math.inf)) for n in range(4)}
    with code.loop(0, _STEPS, carried=carried) as step:
        highest = list(step.now.values())
        for n in range(vectors):
            own = code.wide("float", logits, code.add(code.mul(step.index, vectors * SIDE), n * SIDE))
            more = code.op(f"fcmp ogt {code.vector} {own}, {highest[n % 4]}")
            highest[n % 4] = code.select(more, own, highest[n % 4])
        step.next.update(zip(step.now, highest, strict=True))
    high = functools.reduce(code.greater, step.now.values())
    return code.greater(high, tiles.swapped(code, high)) if half else high


def _paired(code: Loops, one: str, other: str) -> str:
    """Two vectors' weights side by side in bfloat16: the nearest, of two as near the larger.

    What is no number stays none unless all its digits are ones, and its row's sum is none in any case.
    """
    bits = [code.op(f"bitcast {code.vector} {own} to {code.whole}") for own in (one, other)]
    first, second = (code.op(f"add {code.whole} {own}, {code.same(1 << 15)}") for own in bits)
    first = code.op(f"lshr {code.whole} {first}, {code.same(16)}")
    second = code.op(f"and {code.whole} {second}, {code.same(-1 << 16)}")
    return code.op(f"bitcast {code.whole} {code.op(f'or {code.whole} {first}, {second}')} to {code.vector}")


def add(code: Loops, width: int, out: str, rows: str, scratch: dict[str, str]) -> None:
    """Adds a block's values, by their weights, to the outputs of some rows, which fade first."""
    across = width // SIDE
    for begin in range(0, across, _SUMS):
        count = min(_SUMS, across - begin)
        for one in range(count):
            code.do(f"call void @llvm.x86.tilezero(i8 {one})")
        with code.loop(0, _STEPS) as step:
            weights = code.place("i8", scratch["weights"], code.mul(step.index, BYTES))
            code.do(f"call void @llvm.x86.tileloadd64(i8 4, ptr {weights}, i64 64)")
            values = code.place("i8", scratch["mixed"], code.mul(step.index, across * BYTES))
            for one in range(count):
                own, tile = code.place("i8", values, (begin + one) * BYTES), 5 + one % 3
                code.do(f"call void @llvm.x86.tileloadd64(i8 {tile}, ptr {own}, i64 64)")
                code.do(f"call void @llvm.x86.tdpbf16ps(i8 {one}, i8 4, i8 {tile})")
        for one in range(count):
            place = code.place("float", scratch["made"], one * SIDE * SIDE)
            code.do(f"call void @llvm.x86.tilestored64(i8 {one}, ptr {place}, i64 64)")
        with code.loop(0, rows) as row:
            fade = code.splat(code.load("float", scratch["fades"], row.index))
            for one in range(count):
                made = code.wide("float", scratch["made"], code.add(code.mul(row.index, SIDE), one * SIDE * SIDE))
                place = code.add(code.mul(row.index, width), (begin + one) * SIDE)
                code.store(code.vector, code.fma(code.wide("float", out, place), fade, made), out, place, of="float")
