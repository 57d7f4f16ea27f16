"""Attention of a few queries, as code: blocks of keys that are named one by one, and of others behind them.

Owns what a kernel of ``few_queries`` is told, and its steps. Knows no tensor.
"""

from __future__ import annotations

import functools
import math

import torch

from longctx.kernels import blocks
from longctx.kernels.elementary import exp
from longctx.kernels.loops import FORMATS, Loops

_TOLD = (
    "q", "slots", "counts", "said", "masses", "out", "top", "sums", "wrong", "HEADS", "ROWS", "SLOTS", "PIECES", "SETS",
    "KEYS", "k", "K_BATCH", "K_HEAD", "K_KEY", "v", "V_BATCH", "V_HEAD", "V_KEY",
    "MORE", "k2", "K2_BATCH", "K2_HEAD", "K2_KEY", "v2", "V2_BATCH", "V2_HEAD", "V2_KEY", "number", "count",
)  # fmt: skip


def code(dtype: torch.dtype, width: int, tiles: tuple[int, ...], lanes: int) -> str:
    """``run`` for a thread's share: some of the keys of some of the sets, a block of keys at a time for all rows."""
    code, stored, block = Loops(lanes), FORMATS[dtype], 2 * lanes
    code.declare("float @llvm.minnum.f32(float, float)")
    for rows in tiles:
        _tile(code, stored, rows, width)
    _others(code, width)
    with code.function("void @run(ptr %given)"):
        room = code.op(f"alloca [{width * block} x float], align 64")
        weights = code.op(f"alloca [{blocks.TILE * block} x float], align 64")
        places = [code.op(f"alloca [{2 * block} x ptr], align 64") for _ in range(2)]
        told = code.told(_TOLD)
        low, high = code.share(told["number"], told["count"], code.mul(told["SETS"], told["PIECES"]))
        with code.loop(low, high) as unit:
            piece, own = code.div(unit.index, told["SETS"]), code.rem(unit.index, told["SETS"])
            count = _count(code, told, own)
            whole = code.add(count, told["MORE"])
            first, last = (code.div(code.mul(whole, one), told["PIECES"]) for one in (piece, code.add(piece, 1)))
            text, head = code.div(own, told["HEADS"]), code.rem(own, told["HEADS"])
            bases = blocks.bases(code, stored, told, text, head)
            named, more = (
                blocks.Stored((bases[k], bases[v]), (told[f"{k.upper()}_KEY"], told[f"{v.upper()}_KEY"]))
                for k, v in (("k", "v"), ("k2", "v2"))
            )
            slots = code.place("i64", told["slots"], code.mul(own, told["SLOTS"]))
            slots = code.op(f"select i1 {code.null(told['slots'])}, ptr null, ptr {slots}")
            row = code.mul(own, told["ROWS"])
            query = code.place("float", told["q"], code.mul(row, width))
            made = code.mul(unit.index, told["ROWS"])
            out = code.place("float", told["out"], code.mul(made, width))
            top, sums = (code.place("float", told[name], made) for name in ("top", "sums"))
            _begin(code, told["ROWS"], width, out, top, sums)
            length, within = code.sub(last, first), (told["KEYS"], told["wrong"])
            blocks.addresses(code, stored, (first, last), count, slots, named, more, places, "0", within)
            with code.loop(0, length, block) as at:
                begin, left = code.add(first, at.index), code.sub(length, at.index)
                now = code.op(f"and i64 {at.index}, {block}")
                then, span = code.sub(block, now), (code.add(begin, block), last)
                blocks.addresses(code, stored, span, count, slots, named, more, places, then, within)
                keys, values = (code.place("ptr", own_, now) for own_ in places)
                ahead = [code.place("ptr", own_, then) for own_ in places]
                blocks.turn(code, stored, width, functools.partial(code.load, "ptr", keys), room)
                with code.loop(0, told["ROWS"], blocks.TILE) as tile:
                    wide = code.mul(tile.index, width)
                    q, o = code.place("float", query, wide), code.place("float", out, wide)
                    t, s = code.place("float", top, tile.index), code.place("float", sums, tile.index)
                    pointers = (q, room, values, *ahead, weights, o, t, s)
                    given = f"{', '.join(f'ptr {one}' for one in pointers)}, i64 {left}"
                    rest = code.least_of(code.sub(told["ROWS"], tile.index), blocks.TILE)
                    code.choose(rest, {n: f"call void @tile{n}({given})" for n in tiles})
            blocks.end(code, told["ROWS"], width, out, top, sums)
            said, masses = (
                code.place("float", told["said"], code.mul(row, width)),
                code.place("float", told["masses"], row),
            )
            given = f"ptr {out}, ptr {top}, ptr {said}, ptr {masses}, i64 {told['ROWS']}"
            none = code.op(f"zext i1 {code.null(told['said'])} to i64")
            code.choose(none, {0: f"call void @beside({given})"})
    return code.text()


def _others(code: Loops, width: int) -> None:
    """Adds to the outputs of rows what other keys have said, by their share."""
    with code.function("internal void @beside(ptr %out, ptr %logs, ptr %said, ptr %masses, i64 %rows)"):
        with code.loop(0, "%rows") as row:
            apart = code.op(
                f"fsub float {code.load('float', '%masses', row.index)}, {code.load('float', '%logs', row.index)}"
            )
            lower = code.op(f"call float @llvm.minnum.f32(float {apart}, float {code.op(f'fneg float {apart}')})")
            far = code.op(f"fcmp oeq float {lower}, {code.number(-math.inf)}")  # which has no exponential here
            lower = code.op(f"select i1 {far}, float {code.number(blocks.LOWEST)}, float {lower}")
            small = exp(code, code.splat(lower))  # of the lesser share to the larger one
            whole = code.vec("fadd", small, code.constant(1.0))
            less, others = code.vec("fdiv", small, whole), code.op(f"fcmp olt float {apart}, 0.0")
            more = code.vec("fdiv", code.constant(1.0), whole)
            share = code.op(f"select i1 {others}, {code.vector} {less}, {code.vector} {more}")
            with code.loop(0, width, code.lanes) as at:
                place = code.add(code.mul(row.index, width), at.index)
                own = code.wide("float", "%out", place)
                gap = code.vec("fsub", code.wide("float", "%said", place), own)
                code.store(code.vector, code.fma(gap, share, own), "%out", place, of="float")


def _count(code: Loops, told: dict[str, str], own: str) -> str:
    """How many keys or slots the set ``own`` has."""
    every = code.op(f"select i1 {code.null(told['slots'])}, i64 {told['KEYS']}, i64 {told['SLOTS']}")
    count = code.unless(code.null(told["counts"]), every, lambda: code.load("i64", told["counts"], own))
    outside = code.op(f"icmp ugt i64 {count}, {every}")
    code.mark(outside, told["wrong"])
    return code.op(f"select i1 {outside}, i64 0, i64 {count}")


def _begin(code: Loops, rows: str, width: int, out: str, top: str, sums: str) -> None:
    """Nothing has been seen yet."""
    with code.loop(0, rows) as row:
        code.store("float", code.number(blocks.LOWEST), top, row.index)
        code.store("float", "0.0", sums, row.index)
    with code.loop(0, code.mul(rows, width), code.lanes) as at:
        code.store(code.vector, "zeroinitializer", out, at.index, of="float")


def _tile(code: Loops, stored: str, rows: int, width: int) -> None:
    """What ``rows`` rows see in a block of keys, of which ``left`` or all are real, joined with what was before."""
    lanes, vector, halves = code.lanes, code.vector, range(2)
    names = ("q", "keys", "values", "next_keys", "next_values", "weights", "out", "top", "sums")
    head = f"internal void @tile{rows}({', '.join(f'ptr %{name}' for name in names)}, i64 %left)"
    with code.function(head):
        found, seen = blocks.logits(code, rows, width, "%q", "%keys"), blocks.real(code, "%left")
        low, gaps, totals = code.constant(blocks.LOWEST), "poison", []
        for row, own in enumerate(found):
            shown = [code.select(seen[half], own[half], low) for half in halves]
            before, most = code.load("float", "%top", row), code.highest(code.greater(*shown))
            top = code.op(f"call float @llvm.maxnum.f32(float {before}, float {most})")
            code.store("float", top, "%top", row)
            weights = [exp(code, code.vec("fsub", shown[half], code.splat(top))) for half in halves]
            weights = [code.select(seen[half], weights[half], "zeroinitializer") for half in halves]
            for half in halves:
                code.store(vector, weights[half], "%weights", (2 * row + half) * lanes, of="float")
            totals.append(code.vec("fadd", *weights))
            gap = code.op(f"fsub float {before}, {top}")
            gaps = code.op(f"insertelement {vector} {gaps}, float {gap}, i64 {row}")
        faded = exp(code, gaps)  # what counted for less from now on, of all rows at once
        fades = []
        for row, total in enumerate(totals):
            fade = code.op(f"extractelement {vector} {faded}, i64 {row}")
            kept = code.op(f"fmul float {code.load('float', '%sums', row)}, {fade}")
            code.store("float", code.op(f"fadd float {kept}, {code.sum(total)}"), "%sums", row)
            fades.append(code.splat(fade))
        there = code.least_of("%left", 2 * lanes)
        for first in range(0, width // lanes, blocks.CHUNK):
            blocks.values(code, stored, range(first, min(first + blocks.CHUNK, width // lanes)), width, fades, there)
