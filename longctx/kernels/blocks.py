"""Blocks of keys as kernels work on them: widened, turned, and multiplied by a few rows.

Owns these steps as code. A block has as many keys as two vectors have numbers. Knows no kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from longctx.kernels.elementary import log
from longctx.kernels.loops import Loops, Turn

TILE = 8  # rows that are worked on at a time
CHUNK = 2  # vectors of a row's output that are summed in registers at a time
LOWEST = -3.0e38  # as a logit: of nothing
Ahead = tuple[str, str] | None


def tiles(rows: int) -> tuple[int, ...]:
    """How many rows the tiles have that ``rows`` rows go in."""
    return tuple({min(rows, TILE), rows % TILE} - {0})


def turn(code: Loops, stored: str, width: int, where: Callable[[str], str], room: str) -> None:
    """A block of keys in float32 with a row for each dimension, into ``room``; ``where`` writes a key's address."""
    lanes = code.lanes
    with code.loop(0, 2 * lanes, lanes) as group, code.loop(0, width, lanes) as part:
        rows = [code.wide(stored, where(code.add(group.index, own)), part.index) for own in range(lanes)]
        for own, column in enumerate(turned(code, rows)):
            place = code.add(code.mul(code.add(part.index, own), 2 * lanes), group.index)
            code.store(code.vector, column, room, place, of="float")


def turned(code: Loops, rows: Sequence[str]) -> list[str]:
    """As many vectors as each has numbers, with rows for columns.

    Of half as many the halves are turned each by itself: a vector holds half a row, and half of one so much later.
    """
    found, n, apart = list(rows), code.lanes, len(rows) // 2
    while apart:
        for i in range(len(rows)):
            if i & apart:
                continue
            one, other = found[i], found[i | apart]
            low = [p if not p & apart else n + p - apart for p in range(n)]
            high = [p + apart if not p & apart else n + p for p in range(n)]
            found[i], found[i | apart] = (code.shuffled(one, other, order) for order in (low, high))
        apart //= 2
    return found


def logits(
    code: Loops, rows: int, width: int, query: str, keys: str, onto: list[list[str]] | None = None, ahead: Ahead = None
) -> list[list[str]]:
    """Two vectors a row of ``query``: its products with ``keys``, which stand with a row for each dimension.

    They are added ``onto`` what is given. What is ``ahead``, a format and an address, is asked for meanwhile: as many
    numbers as the block has.
    """
    lanes, halves = code.lanes, range(2)
    first = onto or [["zeroinitializer"] * 2] * rows
    carried = {f"s{row}.{half}": (code.vector, first[row][half]) for row in range(rows) for half in halves}
    with code.loop(0, width, carried=carried) as at:
        wide = [code.wide("float", keys, code.add(code.mul(at.index, 2 * lanes), half * lanes)) for half in halves]
        if ahead is not None:
            stored, base = ahead
            for line in range(0, 2 * lanes, code.line(stored)):
                code.ask(code.place(stored, base, code.add(code.mul(at.index, 2 * lanes), line)))
        for row in range(rows):
            number = code.load("float", query, code.add(at.index, row * width))
            for half in halves:
                at.next[f"s{row}.{half}"] = code.fma(wide[half], code.splat(number), at.now[f"s{row}.{half}"])
    return [[at.now[f"s{row}.{half}"] for half in halves] for row in range(rows)]


def real(code: Loops, left: str) -> list[str]:
    """Which of a block's keys there are, where ``left`` or all are: two masks."""
    count = code.splat(code.op(f"trunc i64 {left} to i32"), "i32")
    lanes = [code.integers(range(half * code.lanes, (half + 1) * code.lanes)) for half in range(2)]
    return [code.op(f"icmp slt {code.whole} {own}, {count}") for own in lanes]


def added(code: Loops, base: str, masks: list[str]) -> list[str]:
    """The numbers at ``base`` for a block's keys, of which only what the ``masks`` show is read."""
    v, n = code.vector, code.lanes
    places = [code.place("float", base, half * n) for half in range(2)]
    return [
        code.op(f"call {v} @llvm.masked.load.v{n}f32.p0(ptr {place}, i32 4, <{n} x i1> {mask}, {v} zeroinitializer)")
        for place, mask in zip(places, masks, strict=True)
    ]


def bases(code: Loops, stored: str, told: Mapping[str, str], text: str, head: str) -> dict[str, str]:
    """Where the keys and values of one text and KV head begin that a kernel is ``told`` of, in both places."""
    found = {}
    for name in ("k", "v", "k2", "v2"):
        parts = (code.mul(n, told[f"{name.upper()}_{part}"]) for n, part in ((text, "BATCH"), (head, "HEAD")))
        found[name] = code.place(stored, told[name], code.add(*parts))
    return found


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the keys and values of one text and KV head are: addresses of the first ones, and numbers between two."""

    bases: tuple[str, str]
    strides: tuple[str, str]


def addresses(
    code: Loops, stored: str, span: tuple[str, str], count: str, slots: str, own: Stored, more: Stored,
    places: list[str], start: str, within: tuple[str, str],
) -> None:  # fmt: skip
    """Where the keys and values of a block are, into ``places`` from ``start`` on: it begins and all end at ``span``.

    The first ``count`` are those of its ``own`` that the ``slots`` name, or as they come where these point nowhere, and
    behind them ``more`` as they come. Behind the last one, that of the last: nothing is read that is not there.
    ``within`` are the number of its own keys and what is marked where a slot is none of them, in place of which the
    first is read.
    """
    (first, last), (keys, wrong) = span, within
    end, named = code.add(last, -1), code.add(count, -1)
    any_ = code.op(f"icmp sgt i64 {count}, 0")
    with code.loop(0, 2 * code.lanes, carried={"bad": ("i1", "false")}) as at:
        place = code.most_of(code.least_of(code.add(first, at.index), end), 0)
        here = code.most_of(code.least_of(place, named), 0)
        which = code.unless(code.null(slots), here, functools.partial(code.load, "i64", slots, here))
        outside = code.op(f"icmp uge i64 {which}, {keys}")
        which = code.op(f"select i1 {outside}, i64 0, i64 {which}")
        at.next["bad"] = code.op(f"or i1 {at.now['bad']}, {outside}")
        behind = code.op(f"icmp sge i64 {place}, {count}")
        for base, stride, other, other_stride, into in zip(
            own.bases, own.strides, more.bases, more.strides, places, strict=True
        ):
            one = code.place(stored, base, code.mul(which, stride))
            two = code.place(stored, other, code.mul(code.sub(place, count), other_stride))
            address = code.op(f"select i1 {behind}, ptr {two}, ptr {one}")
            code.store("ptr", address, into, code.add(start, at.index))
    code.mark(code.op(f"and i1 {at.now['bad']}, {any_}"), wrong)


def values(code: Loops, stored: str, parts: range, width: int, fades: list[str], there: str) -> None:
    """Adds the values of a block, by their weights, to some vectors of every row's output."""
    lanes, vector = code.lanes, code.vector
    places = {f"a{row}.{part}": row * width + part * lanes for row in range(len(fades)) for part in parts}
    carried = {
        name: (vector, code.vec("fmul", code.wide("float", "%out", place), fades[int(name[1:].split(".")[0])]))
        for name, place in places.items()
    }
    with code.loop(0, there, carried=carried) as at:
        value = code.load("ptr", "%values", at.index)
        wide = {part: code.wide(stored, value, part * lanes) for part in parts}
        if not parts[0]:
            _next(code, stored, width, at)
        for row in range(len(fades)):
            weight = code.splat(code.load("float", "%weights", code.add(at.index, 2 * row * lanes)))
            for part in parts:
                at.next[f"a{row}.{part}"] = code.fma(wide[part], weight, at.now[f"a{row}.{part}"])
    for name, place in places.items():
        code.store(vector, at.now[name], "%out", place, of="float")


def end(code: Loops, rows: str, width: int, out: str, top: str, sums: str) -> None:
    """Outputs by the sums of their weights, and logarithms in place of the largest; of no weight 0, and the lowest."""
    with code.loop(0, rows) as row:
        total = code.load("float", sums, row.index)
        found = code.op(f"fadd float {code.load('float', top, row.index)}, {log(code, total, '0.0')}")
        code.store("float", found, top, row.index)
        whole = code.op(f"fdiv float 1.0, {total}")
        factor = code.splat(code.op(f"select i1 {code.op(f'fcmp oeq float {total}, 0.0')}, float 0.0, float {whole}"))
        with code.loop(0, width, code.lanes) as at:
            place = code.add(code.mul(row.index, width), at.index)
            scaled = code.vec("fmul", code.wide("float", out, place), factor)
            code.store(code.vector, scaled, out, place, of="float")


def _next(code: Loops, stored: str, width: int, at: Turn) -> None:
    """Has the memory send a key and a value of the next block."""
    for name in ("%next_keys", "%next_values"):
        base = code.load("ptr", name, at.index)
        for line in range(0, width, code.line(stored)):
            code.ask(code.place(stored, base, line))
