"""The choice of clusters, as code: which are read within a budget by their masses, and what the others would say.

Owns what a kernel of ``cluster_choice`` is told, and the order of its steps. Knows no tensor.
"""

from __future__ import annotations

from longctx.kernels import blocks, clusters, ranges
from longctx.kernels.elementary import exp, log
from longctx.kernels.loops import Loops

ROOMS = (
    "q", "squares", "added", "known", "sums", "others", "total", "ends", "left", "worth", "first", "second", "shares",
)  # fmt: skip
_TOLD = (
    "rows", "weights", "keys", "centre", "means", "spreads", "logs", "sizes", "starts", "says", "slots", "counts",
    "out", "log", "wide", *ROOMS, "wrong", "SETS", "HEADS", "ROWS", "CLUSTERS", "PADDED", "SLOTS", "SINKS", "ENDS",
    "BUDGET", "SCALE", "W_SET", "K_HEAD", "K_KEY", "number", "count", "barrier",
)  # fmt: skip
_AHEAD = 2**12  # bytes by which what clusters say is asked for before it is needed
_TOLD_APART = 1e-30  # of a row's largest mass: less is too little for sums of float32


def rooms(rows: int, width: int, ends: int, padded: int) -> tuple[int, ...]:
    """Numbers of float32 that are worked on for each KV head of a text, by the names of ``ROOMS``."""
    return (rows * width, rows * width, *(5 * (rows,)), rows * ends, padded, padded, *(3 * (rows * padded,)))


def written(stored: str, width: int, tiles: tuple[int, ...], lanes: int) -> str:
    """``run`` for a thread: queries made ready, then masses, then choices, for which all wait for one another."""
    code = Loops(lanes)
    ranges.declare(code)
    for number in tiles:
        clusters.declare(code, stored, number, width)
        _say(code, stored, number, width)
    _others(code)
    with code.function("void @run(ptr %given)"):
        room = code.op(f"alloca [{4 * width * lanes} x float], align 64")
        told = code.told(_TOLD)
        alone, wait = code.op(f"zext i1 {code.null(told['barrier'])} to i64"), {0: f"call void {told['barrier']}()"}
        mine, of = code.team(told["number"], told["count"])
        clusters.ready(code, stored, width, told, code.part(mine, of, told["SETS"]))
        code.choose(alone, wait)
        clusters.masses(code, stored, width, tiles, told, room, (mine, of))
        code.choose(alone, wait)
        _choices(code, stored, width, tiles, told, code.part(mine, of, told["SETS"]))
    return code.text()


def _choices(
    code: Loops, stored: str, width: int, tiles: tuple[int, ...], told: dict[str, str], part: tuple[str, str]
) -> None:
    """The slots that some KV heads read, and what is left, by their masses."""
    some, padded, rows = told["CLUSTERS"], told["PADDED"], told["ROWS"]
    free = code.sub(told["BUDGET"], told["ENDS"])
    with code.loop(*part) as own:
        row, kept = code.mul(own.index, rows), code.mul(code.rem(own.index, told["HEADS"]), some)
        lines = ("first", "second", "shares")
        first, second, shares = (code.place("float", told[name], code.mul(row, padded)) for name in lines)
        by_row = ("known", "sums", "others", "total", "wide", "log")
        known, sums, others, total, wide, log = (code.place("float", told[name], row) for name in by_row)
        weights = code.place("float", told["weights"], code.mul(own.index, told["W_SET"]))
        left, worth = (code.place("float", told[name], code.mul(own.index, padded)) for name in ("left", "worth"))
        sizes, starts = (code.place("i64", told[name], kept) for name in ("sizes", "starts"))
        slots = code.place("i64", told["slots"], code.mul(own.index, told["BUDGET"]))
        _shares(code, (rows, padded), second, known, shares, total, wide)
        _worth(code, (rows, some, padded), shares, total, weights, sizes, worth, left)
        limit, held = ranges.border(code, padded, worth, left, free)
        with code.loop(0, told["ENDS"]) as end:
            code.store("i64", clusters.end_slot(code, told, end.index), slots, end.index)
        given = (worth, sizes, starts, code.place("i64", slots, told["ENDS"]), left)
        within = (told["SLOTS"], told["wrong"])
        count = code.add(ranges.write(code, some, given, limit, held, free, within), told["ENDS"])
        code.store("i64", count, told["counts"], own.index)
        with code.loop(count, told["BUDGET"]) as at:
            code.store("i64", "0", slots, at.index)
        with code.loop(0, rows) as at:
            line = code.place("float", first, code.mul(at.index, padded))
            code.do(f"call void @others({_given(code, line, left, padded, log, sums, at.index)})")
        _wide(code, (rows, padded), (second, shares), left, (wide, others))
        says = code.place(stored, told["says"], code.mul(kept, width))
        out = code.place("float", told["out"], code.mul(row, width))
        with code.loop(0, rows, blocks.TILE) as tile:
            some_ = code.place("float", first, code.mul(tile.index, padded))
            made, by = code.place("float", out, code.mul(tile.index, width)), code.place("float", sums, tile.index)
            given_ = f"ptr {some_}, ptr {says}, ptr {made}, ptr {by}, i64 {padded}, i64 {some}"
            rest = code.least_of(code.sub(rows, tile.index), blocks.TILE)
            code.choose(rest, {n: f"call void @say{n}({given_})" for n in tiles})


def _shares(
    code: Loops, shape: tuple[str, str], second: str, known: str, shares: str, total: str, largest: str
) -> None:
    """Exponentials of masses beside the ``largest`` of a row's and what is known, and their sum with the latter's."""
    rows, padded = shape
    with code.loop(0, rows) as row:
        place = code.mul(row.index, padded)
        line, into = code.place("float", second, place), code.place("float", shares, place)
        own = code.load("float", known, row.index)
        with code.loop(0, padded, code.lanes, {"most": (code.vector, code.splat(own))}) as at:
            at.next["most"] = code.greater(at.now["most"], code.wide("float", line, at.index))
        most = code.highest(at.now["most"])
        code.store("float", most, largest, row.index)
        beside = exp(code, code.splat(code.op(f"fsub float {own}, {most}")))
        first = code.op(f"extractelement {code.vector} {beside}, i64 0")
        _exponentials(code, line, into, padded, code.splat(most), first, code.place("float", total, row.index))


def _exponentials(code: Loops, line: str, into: str, padded: str, most: str, first: str, total: str) -> None:
    """A row's logarithms as exponentials beside ``most``; their sum and ``first`` go to ``total``."""
    with code.loop(0, padded, code.lanes, {"sum": (code.vector, "zeroinitializer")}) as at:
        share = exp(code, code.vec("fsub", code.wide("float", line, at.index), most))
        code.store(code.vector, share, into, at.index, of="float")
        at.next["sum"] = code.vec("fadd", at.now["sum"], share)
    code.store("float", code.op(f"fadd float {code.sum(at.now['sum'])}, {first}"), total)


def _worth(
    code: Loops, shape: tuple[str, str, str], shares: str, total: str, weights: str, sizes: str, worth: str, short: str
) -> None:
    """How likely a key of each cluster is, and the clusters' sizes as integers of 32 bits into ``short``."""
    rows, clusters, padded = shape
    with code.loop(0, padded, code.lanes) as at:
        with code.loop(0, rows, carried={"sum": (code.vector, "zeroinitializer")}) as row:
            share = code.wide("float", shares, code.add(code.mul(row.index, padded), at.index))
            weight = code.load("float", weights, row.index)
            weight = code.op(f"fdiv float {weight}, {code.load('float', total, row.index)}")
            row.next["sum"] = code.fma(share, code.splat(weight), row.now["sum"])
        own, size = ranges.sized(code, sizes, at.index, clusters)
        each = code.vec("fdiv", row.now["sum"], code.greater(size, code.constant(1.0)))
        code.store(code.vector, each, worth, at.index, of="float")
        code.store(code.whole, own, short, at.index, of="i32")


def _given(code: Loops, line: str, left: str, padded: str, logs: str, sums: str, row: str) -> str:
    """What ``@others`` is told of a row."""
    log, total = code.place("float", logs, row), code.place("float", sums, row)
    return f"ptr {line}, ptr {left}, i64 {padded}, ptr {log}, ptr {total}"


def _others(code: Loops) -> None:
    """A row's masses of what is not taken become exponentials beside the largest, with their sum and its logarithm."""
    low = code.constant(blocks.LOWEST)
    with code.function("internal void @others(ptr %line, ptr %left, i64 %padded, ptr %log, ptr %total)"):
        with code.loop(0, "%padded", code.lanes, {"most": (code.vector, low)}) as at:
            own = code.select(_marked(code, "%left", at.index), code.wide("float", "%line", at.index), low)
            code.store(code.vector, own, "%line", at.index, of="float")
            at.next["most"] = code.greater(at.now["most"], own)
        most = code.highest(at.now["most"])
        _exponentials(code, "%line", "%line", "%padded", code.splat(most), "0.0", "%total")
        found = log(code, code.load("float", "%total"), "0.0")
        code.store("float", code.op(f"fadd float {most}, {found}"), "%log")


def _wide(code: Loops, shape: tuple[str, str], given: tuple[str, str], left: str, made: tuple[str, str]) -> None:
    """The logarithm of the second masses that are not taken: by their shares, where these are large enough to tell."""
    (rows, padded), (second, shares), (wide, sums) = shape, given, made
    with code.loop(0, rows) as row:
        place = code.mul(row.index, padded)
        line, share = code.place("float", second, place), code.place("float", shares, place)
        with code.loop(0, padded, code.lanes, {"sum": (code.vector, "zeroinitializer")}) as at:
            own = code.wide("float", share, at.index)
            own = code.select(_marked(code, left, at.index), own, "zeroinitializer")
            at.next["sum"] = code.vec("fadd", at.now["sum"], own)
        total = code.sum(at.now["sum"])
        found = code.op(f"fadd float {code.load('float', wide, row.index)}, {log(code, total, '0.0')}")
        code.store("float", found, wide, row.index)
        anew = code.op(f"zext i1 {code.op(f'fcmp olt float {total}, {code.number(_TOLD_APART)}')} to i64")
        code.choose(anew, {1: f"call void @others({_given(code, line, left, padded, wide, sums, row.index)})"})


def _marked(code: Loops, left: str, at: str) -> str:
    return code.op(f"fcmp ogt {code.vector} {code.wide('float', left, at)}, zeroinitializer")


def _say(code: Loops, stored: str, rows: int, width: int) -> None:
    """What clusters say by their shares, divided by the shares' sum, for ``rows`` rows."""
    lanes, vector = code.lanes, code.vector
    head = f"internal void @say{rows}(ptr %shares, ptr %says, ptr %out, ptr %sums, i64 %stride, i64 %count)"
    with code.function(head):
        lines = [code.place("float", "%shares", code.mul("%stride", row)) for row in range(rows)]
        factors = [code.splat(code.op(f"fdiv float 1.0, {code.load('float', '%sums', row)}")) for row in range(rows)]
        for first in range(0, width // lanes, blocks.CHUNK):
            parts = range(first, min(first + blocks.CHUNK, width // lanes))
            names = {f"a{row}.{part}": (vector, "zeroinitializer") for row in range(rows) for part in parts}
            with code.loop(0, "%count", carried=names) as at:
                value = code.place(stored, "%says", code.mul(at.index, width))
                wide = {part: code.wide(stored, value, part * lanes) for part in parts}
                if not first:
                    for line in range(0, width, code.line(stored)):
                        code.ask(code.place("i8", code.place(stored, value, line), _AHEAD))
                for row in range(rows):
                    share = code.splat(code.load("float", lines[row], at.index))
                    for part in parts:
                        at.next[f"a{row}.{part}"] = code.fma(wide[part], share, at.now[f"a{row}.{part}"])
            for row in range(rows):
                for part in parts:
                    scaled = code.vec("fmul", at.now[f"a{row}.{part}"], factors[row])
                    code.store(vector, scaled, "%out", row * width + part * lanes, of="float")
