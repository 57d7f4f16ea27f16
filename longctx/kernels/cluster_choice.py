"""Which clusters are read within a budget, and what the others would say, on a CPU.

Owns the machine code. A pass chooses anew in every layer; of some forty operations on a few thousand numbers most of
the time is their beginning. Each KV head is one thread's work. Knows no policy.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longctx.kernels import blocks, few_queries, machine, ranges
from longctx.kernels.elementary import exp, log
from longctx.kernels.loops import FORMATS, Loops

_TOLD = (
    "first", "second", "shares", "known", "weights", "sizes", "starts", "says", "slots", "counts", "left", "worth",
    "out", "sums", "others", "wide", "log", "total", "HEADS", "ROWS", "CLUSTERS", "PADDED", "SETS", "STRIDE", "ROOM",
    "number", "count",
)  # fmt: skip
_AHEAD = 2**12  # bytes by which what clusters say is asked for before it is needed
_TOLD_APART = 1e-30  # of a row's largest mass: less is too little for sums of float32


class Chosen(NamedTuple):
    """What is read, and what is thought of the rest; of a KV head that reads everything this says nothing."""

    counts: Tensor  # long [batch, kv_heads], the slots of the clusters that are read
    out: Tensor  # float32 [batch, kv_heads, rows, dim], what clusters that are not read say by their means
    log: Tensor  # float32 [batch, kv_heads, rows], the logarithm of their mass by their first masses
    wide: Tensor  # the same by their second


def suits(says: Tensor) -> bool:
    """Whether ``choose`` can be had for ``says`` [kv_heads, clusters, dim]."""
    width = says.shape[2]
    return says.is_cpu and says.is_contiguous() and width <= few_queries.WIDEST and bool(version(says.dtype, width))


def version(dtype: torch.dtype, width: int) -> str:
    """Which compiler ``choose`` is had from for a format and a width of what clusters say; empty where it is not."""
    return machine.version(dtype, width, _right)


def reference(
    masses: Tensor, known: Tensor, weights: Tensor, sizes: Tensor, starts: Tensor, says: Tensor, slots: Tensor
) -> Chosen:
    """What ``choose`` gives, up to the order of its sums."""
    first, second = masses[..., : sizes.shape[1]]
    wide = second.double()  # clusters that are as likely as each other come out so
    norm = torch.logaddexp(wide.logsumexp(-1), known.double())
    worth = (((wide - norm[..., None]).exp() * weights[..., None]).sum(2) / sizes.clamp_min(1)).float()
    order = worth.argsort(dim=-1, descending=True, stable=True)
    within = sizes.expand_as(worth).gather(-1, order).cumsum(-1) <= slots.shape[2]
    taken = torch.zeros_like(within).scatter(-1, order, within)
    for one, head in itertools.product(*map(range, slots.shape[:2])):
        inside = [
            range(start, start + size) for start, size in zip(starts[head].tolist(), sizes[head].tolist(), strict=True)
        ]
        own = [slot for which in taken[one, head].nonzero().flatten().tolist() for slot in inside[which]]
        slots[one, head, : len(own)] = torch.tensor(own, dtype=torch.long, device=slots.device)
    some, others = (mass.masked_fill(taken[:, :, None], few_queries.LOWEST) for mass in (first, second))
    out = some.softmax(-1) @ says.float()
    return Chosen((sizes * taken).sum(-1), out, some.logsumexp(-1), others.logsumexp(-1))


def choose(
    masses: Tensor, known: Tensor, weights: Tensor, sizes: Tensor, starts: Tensor, says: Tensor, slots: Tensor
) -> Chosen:
    """Writes the slots of the likeliest clusters into ``slots`` as long as there is room for all of a cluster.

    How likely a key of a cluster is says its share in the second of ``masses``, as ``clusters.masses`` gives them,
    beside what is ``known``, the logarithm of the mass of other keys, float32 [batch, kv_heads, rows]: summed over the
    rows by ``weights``, float32 [batch, kv_heads, rows], and divided by ``sizes``. Of those as likely as each other the
    first are read. ``sizes`` and ``starts``, long [kv_heads, clusters], are the slots of a cluster, and ``says``
    [kv_heads, clusters, dim] the mean of its values. ``slots``, long [batch, kv_heads, room] with numbers side by side,
    has them in ascending clusters. ``masses`` are used up. Raises ValueError for other shapes, and where they do not
    suit.
    """
    _, batch, heads, rows, padded = masses.shape
    count, width = says.shape[1:]
    alike = sizes.shape == starts.shape == says.shape[:2] and known.shape == weights.shape == masses.shape[1:4]
    formats = sizes.dtype == starts.dtype == slots.dtype == torch.long and masses.dtype == torch.float32
    whole = masses.is_contiguous() and slots.stride(2) == 1 and slots.stride(0) == heads * slots.stride(1)
    fit = whole and slots.shape[:2] == (batch, heads) and padded % (2 * machine.lanes()) == 0 and count <= padded
    if not (alike and formats and fit and masses.is_cpu and slots.is_cpu and suits(says)):
        raise ValueError(
            f"masses {tuple(masses.shape)}, sizes {tuple(sizes.shape)}, says {tuple(says.shape)} of {says.dtype}, slots"
            f" {tuple(slots.shape)}: it takes what clusters.masses gives on a CPU, where suits() says yes."
        )
    return _chosen(masses, known, weights, sizes, starts, says, slots)


def _chosen(
    masses: Tensor, known: Tensor, weights: Tensor, sizes: Tensor, starts: Tensor, says: Tensor, slots: Tensor
) -> Chosen:
    _, batch, heads, rows, padded = masses.shape
    count, width = says.shape[1:]
    known, weights = known.float().contiguous(), weights.float().contiguous()
    sizes, starts = sizes.contiguous(), starts.contiguous()
    out = torch.empty(batch, heads, rows, width, dtype=torch.float32, device="cpu")
    log, wide = torch.empty(2, batch, heads, rows, dtype=torch.float32, device="cpu").unbind()
    shares = torch.empty(batch, heads, rows, padded, dtype=torch.float32, device="cpu")
    sums, others, total = torch.empty(3, batch, heads, rows, dtype=torch.float32, device="cpu").unbind()
    left, worth = torch.empty(2, batch, heads, padded, dtype=torch.float32, device="cpu").unbind()
    counts = torch.empty(batch, heads, dtype=torch.long, device="cpu")
    given = (*masses, shares, known, weights, sizes, starts, says, slots)
    held = (*given, counts, left, worth, out, sums, others, wide, log, total)
    measures = (heads, rows, count, padded, batch * heads, slots.stride(1), slots.shape[2])
    machine.run(_compiled(says.dtype, width, blocks.tiles(rows)), (*(one.data_ptr() for one in held), *measures))
    return Chosen(counts, out, log, wide)


def _right(dtype: torch.dtype) -> bool:
    width, block = machine.lanes(), 2 * machine.lanes()
    numbers = torch.arange(2 * block, dtype=torch.float32, device="cpu")
    masses = torch.stack((numbers.flip(0), (7 * numbers).remainder(11))).view(2, 1, 1, 2, block) / block
    masses[..., 9:] = few_queries.LOWEST
    sizes, one = torch.arange(1, 10, device="cpu")[None], torch.ones(1, 1, 2, dtype=torch.float32, device="cpu")
    says = torch.arange(9 * width, dtype=torch.float32, device="cpu").view(1, 9, width).div(width).to(dtype)
    found = []
    for way in (_chosen, reference):
        slots = torch.zeros(1, 1, 20, dtype=torch.long, device="cpu")
        found.append((slots, *way(masses.clone(), one, one, sizes, sizes.cumsum(-1) - sizes, says, slots)))
    return all(torch.allclose(own.float(), other.float(), rtol=1e-4) for own, other in zip(*found, strict=True))


@functools.cache
def _compiled(dtype: torch.dtype, width: int, tiles: tuple[int, ...]) -> Any:
    return machine.compiled(_code(FORMATS[dtype], width, tiles, machine.lanes()))


def _code(stored: str, width: int, tiles: tuple[int, ...], lanes: int) -> str:
    code = Loops(lanes)
    ranges.declare(code)
    for number in tiles:
        _tile(code, stored, number, width)
    _others(code)
    with code.function("void @run(ptr %given)"):
        told = code.told(_TOLD)
        clusters, padded, rows = told["CLUSTERS"], told["PADDED"], told["ROWS"]
        low, high = code.share(told["number"], told["count"], told["SETS"])
        with code.loop(low, high) as own:
            row, kept = code.mul(own.index, rows), code.mul(code.rem(own.index, told["HEADS"]), clusters)
            lines = ("first", "second", "shares")
            first, second, shares = (code.place("float", told[name], code.mul(row, padded)) for name in lines)
            by_row = ("known", "weights", "sums", "others", "wide", "log", "total")
            known, weights, sums, others, wide, log, total = (code.place("float", told[name], row) for name in by_row)
            left, worth = (code.place("float", told[name], code.mul(own.index, padded)) for name in ("left", "worth"))
            sizes, starts = (code.place("i64", told[name], kept) for name in ("sizes", "starts"))
            slots = code.place("i64", told["slots"], code.mul(own.index, told["STRIDE"]))
            _shares(code, (rows, padded), second, known, shares, total, wide)
            _worth(code, (rows, clusters, padded), shares, total, weights, sizes, worth, left)
            limit, held = ranges.border(code, padded, worth, left, told["ROOM"])
            given = (worth, sizes, starts, slots, left)
            code.store("i64", ranges.write(code, clusters, given, limit, held, told["ROOM"]), told["counts"], own.index)
            with code.loop(0, rows) as at:
                line = code.place("float", first, code.mul(at.index, padded))
                code.do(f"call void @others({_given(code, line, left, padded, log, sums, at.index)})")
            _wide(code, (rows, padded), (second, shares), left, (wide, others))
            says = code.place(stored, told["says"], code.mul(kept, width))
            out = code.place("float", told["out"], code.mul(row, width))
            with code.loop(0, rows, blocks.TILE) as tile:
                some_ = code.place("float", first, code.mul(tile.index, padded))
                made, by = code.place("float", out, code.mul(tile.index, width)), code.place("float", sums, tile.index)
                given_ = f"ptr {some_}, ptr {says}, ptr {made}, ptr {by}, i64 {padded}, i64 {clusters}"
                some = code.least_of(code.sub(rows, tile.index), blocks.TILE)
                code.choose(some, {n: f"call void @tile{n}({given_})" for n in tiles})
    return code.text()


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
    low = code.constant(few_queries.LOWEST)
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


def _tile(code: Loops, stored: str, rows: int, width: int) -> None:
    """What clusters say by their shares, divided by the shares' sum, for ``rows`` rows."""
    lanes, vector = code.lanes, code.vector
    head = f"internal void @tile{rows}(ptr %shares, ptr %says, ptr %out, ptr %sums, i64 %stride, i64 %count)"
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
