"""What a few rows would give to clusters of keys, as code: two statistics of each are read once, and for all rows.

Owns the steps before a choice: rows made ready, what they give to keys that are read in any case, and the clusters'
masses. Knows no tensor and no policy.
"""

from __future__ import annotations

from collections.abc import Mapping

from longctx.kernels import blocks
from longctx.kernels.elementary import exp, log
from longctx.kernels.loops import Loops


def declare(code: Loops, stored: str, rows: int, width: int) -> None:
    """Writes the masses of a block's clusters, of which ``left`` or all are real, for ``rows`` rows."""
    names = ("q", "squares", "keys", "logs", "added", "first", "second", "means", "spreads")
    head = f"internal void @mass{rows}({', '.join(f'ptr %{name}' for name in names)}, i64 %stride, i64 %left)"
    with code.function(head):
        seen = blocks.real(code, "%left")
        logs, low = blocks.added(code, "%logs", seen), code.constant(blocks.LOWEST)
        more = [code.splat(code.load("float", "%added", row)) for row in range(rows)]
        firsts = [
            [code.vec("fadd", code.vec("fadd", own[half], more[row]), logs[half]) for half in range(2)]
            for row, own in enumerate(blocks.logits(code, rows, width, "%q", "%keys", ahead=(stored, "%means")))
        ]
        spreads = code.place("float", "%keys", 2 * width * code.lanes)
        seconds = blocks.logits(code, rows, width, "%squares", spreads, firsts, (stored, "%spreads"))
        for name, found in (("%first", firsts), ("%second", seconds)):
            for row, own in enumerate(found):
                for half in range(2):
                    place = code.add(code.mul("%stride", row), half * code.lanes)
                    code.store(code.vector, code.select(seen[half], own[half], low), name, place, of="float")


def ready(code: Loops, stored: str, width: int, told: dict[str, str], part: tuple[str, str]) -> None:
    """Rows times the scale, their squares by a half, what the centre gives, and what keys at both ends do together."""
    bits = code.op(f"trunc i64 {told['SCALE']} to i32")
    scale, rows, ends = code.splat(code.op(f"bitcast i32 {bits} to float")), told["ROWS"], told["ENDS"]
    with code.loop(*part) as own:
        head, first = code.rem(own.index, told["HEADS"]), code.mul(own.index, rows)
        centre = code.place("float", told["centre"], code.mul(head, width))
        keys = code.place(stored, told["keys"], code.mul(head, told["K_HEAD"]))
        with code.loop(0, rows) as row:
            at_row = code.add(first, row.index)
            line = code.mul(at_row, width)
            with code.loop(0, width, code.lanes, {"sum": (code.vector, "zeroinitializer")}) as at:
                place = code.add(line, at.index)
                scaled = code.vec("fmul", code.wide("float", told["rows"], place), scale)
                code.store(code.vector, scaled, told["q"], place, of="float")
                half = code.vec("fmul", code.vec("fmul", scaled, scaled), code.constant(0.5))
                code.store(code.vector, half, told["squares"], place, of="float")
                at.next["sum"] = code.fma(scaled, code.wide("float", centre, at.index), at.now["sum"])
            code.store("float", code.sum(at.now["sum"]), told["added"], at_row)
        with code.loop(0, ends) as end:
            which = end_slot(code, told, end.index)
            key = code.place(stored, keys, code.mul(which, told["K_KEY"]))
            with code.loop(0, rows) as row:
                line = code.place("float", told["q"], code.mul(code.add(first, row.index), width))
                with code.loop(0, width, code.lanes, {"sum": (code.vector, "zeroinitializer")}) as at:
                    query = code.wide("float", line, at.index)
                    at.next["sum"] = code.fma(query, code.wide(stored, key, at.index), at.now["sum"])
                place = code.add(code.mul(code.add(first, row.index), ends), end.index)
                code.store("float", code.sum(at.now["sum"]), told["ends"], place)
        with code.loop(0, rows) as row:
            at_row = code.add(first, row.index)
            line = code.place("float", told["ends"], code.mul(at_row, ends))
            _sum_up(code, line, ends, told["known"], at_row)


def end_slot(code: Loops, told: Mapping[str, str], which: str) -> str:
    """The slot of one of the keys at both ends."""
    behind = code.add(told["SLOTS"], code.sub(which, told["ENDS"]))
    late = code.op(f"icmp sge i64 {which}, {told['SINKS']}")
    return code.op(f"select i1 {late}, i64 {behind}, i64 {which}")


def _sum_up(code: Loops, line: str, count: str, into: str, at: str) -> None:
    """The logarithm of the sum of exponentials of some numbers, one by one: there are few."""
    low = code.number(blocks.LOWEST)
    with code.loop(0, count, carried={"most": ("float", low)}) as one:
        own = code.load("float", line, one.index)
        one.next["most"] = code.op(f"call float @llvm.maxnum.f32(float {one.now['most']}, float {own})")
    most = one.now["most"]
    with code.loop(0, count, carried={"sum": ("float", "0.0")}) as one:
        gap = code.op(f"fsub float {code.load('float', line, one.index)}, {most}")
        share = code.op(f"extractelement {code.vector} {exp(code, code.splat(gap))}, i64 0")
        one.next["sum"] = code.op(f"fadd float {one.now['sum']}, {share}")
    code.store("float", code.op(f"fadd float {most}, {log(code, one.now['sum'], '0.0')}"), into, at)


def masses(
    code: Loops, stored: str, width: int, tiles: tuple[int, ...], told: dict[str, str], room: str, team: tuple[str, str]
) -> None:
    """A share of the blocks of clusters, of one text and KV head each, for all rows."""
    block, clusters = 2 * code.lanes, told["CLUSTERS"]
    per = code.div(code.add(clusters, block - 1), block)
    low, high = code.part(*team, code.mul(told["SETS"], per))
    with code.loop(low, high) as unit:
        own, begin = code.div(unit.index, per), code.mul(code.rem(unit.index, per), block)
        start = code.mul(code.rem(own, told["HEADS"]), clusters)
        first, last = code.add(start, begin), code.add(start, code.add(clusters, -1))
        for place, name in enumerate(("means", "spreads")):

            def where(key: str, base: str = told[name], first: str = first, last: str = last) -> str:
                number = code.least_of(code.add(first, key), last)  # nothing is read that is not there
                return code.place(stored, base, code.mul(number, width))

            blocks.turn(code, stored, width, where, code.place("float", room, place * width * block))
        logs, after = code.place("float", told["logs"], first), code.mul(code.add(first, block), width)
        following = [code.place(stored, told[name], after) for name in ("means", "spreads")]
        with code.loop(0, told["ROWS"], blocks.TILE) as tile:
            row = code.add(code.mul(own, told["ROWS"]), tile.index)
            at = code.mul(row, width)
            own_ = [code.place("float", told[name], at) for name in ("q", "squares")]
            added = code.place("float", told["added"], row)
            made = code.add(code.mul(row, told["PADDED"]), begin)
            outs = [code.place("float", told[name], made) for name in ("first", "second")]
            pointers = ", ".join(f"ptr {one}" for one in (*own_, room, logs, added, *outs, *following))
            given = f"{pointers}, i64 {told['PADDED']}, i64 {code.sub(clusters, begin)}"
            rest = code.least_of(code.sub(told["ROWS"], tile.index), blocks.TILE)
            code.choose(rest, {n: f"call void @mass{n}({given})" for n in tiles})
