"""Attention of a few queries over many keys, on a CPU: keys and values are read once, and only those that are named.

Owns the machine code. The library's own kernel multiplies blocks of keys by calls of their own, reads all that it is
given, and takes several times as long for one row in formats of 16 bits. Here a block of keys is widened and turned, so
that a vector has one dimension of many keys, and goes to all rows while it is in a cache; what is read next is asked
for meanwhile. Softmax is made as it goes (Milakov and Gimelshein 2018). Knows no cache and no policy.
"""

from __future__ import annotations

import functools
import math
from array import array
from typing import Any

import torch
from torch import Tensor

from longctx.kernels import blocks, machine
from longctx.kernels.elementary import exp
from longctx.kernels.loops import FORMATS, Loops

REVISION = 2  # to be raised when the way of attending changes: what was tried before then holds no more
WIDEST = 256  # numbers of a key: a block of them is worked on in the nearest caches
LOWEST = blocks.LOWEST
_TOLD = (
    "q", "k", "v", "slots", "counts", "out", "top", "sums", "wrong", "HEADS", "ROWS", "KEYS", "SLOTS", "PIECES", "SETS",
    "K_BATCH", "K_HEAD", "K_KEY", "V_BATCH", "V_HEAD", "V_KEY", "number", "count",
)  # fmt: skip


def suits(key: Tensor, value: Tensor) -> bool:
    """Whether ``attend`` can be had for keys and values [batch, kv_heads, keys, dim]: on a CPU, alike.

    Their numbers must stand side by side, in whole vectors.
    """
    width, dtype = key.shape[-1], key.dtype
    return (
        key.is_cpu
        and value.is_cpu
        and dtype == value.dtype
        and width == value.shape[-1] <= WIDEST
        and key.stride(-1) == value.stride(-1) == 1
        and bool(version(dtype, width))
    )


def version(dtype: torch.dtype, width: int) -> str:
    """Which compiler ``attend`` is had from for keys of a format and a width; empty where it is not."""
    return machine.version(dtype, width, _right)


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    slots: Tensor | None = None,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What ``attend`` gives, up to the order of its sums."""
    batch, heads = query.shape[:2]
    key, value = (states.float().expand(batch, -1, -1, -1) for states in (key, value))
    if slots is not None:
        key, value = (
            states.gather(2, slots[..., None].expand(-1, -1, -1, states.shape[-1])) for states in (key, value)
        )
    logits = query.float() @ key.transpose(-1, -2) * scale
    if counts is not None:
        gone = torch.arange(key.shape[2], device=key.device) >= counts[..., None]
        logits = logits.masked_fill(gone[:, :, None], LOWEST)
    return logits.softmax(-1) @ value, logits.logsumexp(-1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    slots: Tensor | None = None,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows [batch, kv_heads, rows, dim] over keys and values [batch or 1, kv_heads, keys, dim], all in float32.

    Returns the rows' outputs, float32 [batch, kv_heads, rows, dim], and the logarithms of their softmax's denominators,
    float32 [batch, kv_heads, rows], ``LOWEST`` where nothing is seen. Of the keys only ``slots``, long
    [batch, kv_heads, some], are read, and of these the first ``counts``, long [batch, kv_heads]; None: all.
    Infinite logits make outputs that are no numbers. Raises ValueError for keys that do not suit and for other shapes,
    IndexError for slots that are none of the keys and for counts of more than there are.
    """
    batch, heads, rows, width = query.shape
    keys, most = key.shape[2], 0 if slots is None else slots.shape[2]
    if not suits(key, value) or not _fit(query, key, value, slots, counts):
        raise ValueError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} of {key.dtype} on {key.device}, value "
            f"{tuple(value.shape)}: it takes rows and keys as wide as each other on a CPU, where suits() says yes."
        )
    if not keys or slots is not None and not most:
        out = torch.zeros(query.shape, dtype=torch.float32, device="cpu")
        return out, torch.full(query.shape[:3], LOWEST, dtype=torch.float32, device="cpu")
    return _attended(query, key, value, scale, slots, counts)


def _attended(
    query: Tensor, key: Tensor, value: Tensor, scale: float, slots: Tensor | None, counts: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, heads, rows, width = query.shape
    keys, most = key.shape[2], 0 if slots is None else slots.shape[2]
    wide = (query.float() * scale).contiguous()
    wrong = array("q", (0,))
    threads, sets = machine.threads() or 1, batch * heads
    pieces = threads // math.gcd(sets, threads)
    out = torch.empty(pieces, batch, heads, rows, width, dtype=torch.float32, device="cpu")
    log = torch.empty(pieces, batch, heads, rows, dtype=torch.float32, device="cpu")
    sums = torch.empty_like(log)
    held = [None if one is None else one.contiguous() for one in (slots, counts)]
    strides = (own if len(states) > 1 else (0, *own[1:]) for states in (key, value) for own in (states.stride()[:3],))
    machine.run(
        _compiled(key.dtype, width, blocks.tiles(rows)),
        (
            *(one.data_ptr() for one in (wide, key, value)),
            *(0 if one is None else one.data_ptr() for one in held),
            *(one.data_ptr() for one in (out, log, sums)),
            wrong.buffer_info()[0],
            *(heads, rows, keys, most, pieces, sets),
            *(number for own in strides for number in own),
        ),
    )
    if wrong[0]:
        raise IndexError(
            f"a slot is none of {keys} keys, or a count is none of 0 to {keys if slots is None else most}."
        )
    if pieces == 1:
        return out[0], log[0]
    return (out * log.softmax(0).unsqueeze(-1)).sum(0), log.logsumexp(0)


def _fit(query: Tensor, key: Tensor, value: Tensor, slots: Tensor | None, counts: Tensor | None) -> bool:
    batch, heads, _, width = query.shape
    return (
        query.is_cpu
        and key.shape == value.shape
        and key.shape[0] in (1, batch)
        and (heads, width) == (key.shape[1], key.shape[3])
        and (slots is None or (slots.dtype == torch.long and slots.is_cpu and slots.shape[:2] == (batch, heads)))
        and (counts is None or (counts.dtype == torch.long and counts.is_cpu and counts.shape == (batch, heads)))
    )


def _right(dtype: torch.dtype) -> bool:
    width = machine.lanes()
    numbers = torch.arange(5 * width, dtype=torch.float32, device="cpu").view(1, 1, 5, width)
    x = (numbers / width).to(dtype)
    found, expected = _attended(x[:, :, :2], x, x, 1.0, None, None), reference(x[:, :, :2], x, x, 1.0)
    return all(torch.allclose(one, other, rtol=1e-4) for one, other in zip(found, expected, strict=True))


@functools.cache
def _compiled(dtype: torch.dtype, width: int, tiles: tuple[int, ...]) -> Any:
    """The machine code for keys of a format and a width, and so many rows at a time: each takes a while to compile."""
    return machine.compiled(_code(dtype, width, tiles, machine.lanes()))


def _code(dtype: torch.dtype, width: int, tiles: tuple[int, ...], lanes: int) -> str:
    """``run`` for a thread's share: some of the keys of some of the sets, a block of keys at a time for all rows."""
    code, stored, block = Loops(lanes), FORMATS[dtype], 2 * lanes
    for rows in tiles:
        _tile(code, stored, rows, width)
    with code.function("void @run(ptr %given)"):
        room = code.op(f"alloca [{width * block} x float], align 64")
        weights = code.op(f"alloca [{blocks.TILE * block} x float], align 64")
        places = [code.op(f"alloca [{2 * block} x ptr], align 64") for _ in range(2)]
        told = code.told(_TOLD)
        low, high = code.share(told["number"], told["count"], code.mul(told["SETS"], told["PIECES"]))
        with code.loop(low, high) as unit:
            piece, own = code.div(unit.index, told["SETS"]), code.rem(unit.index, told["SETS"])
            count = _count(code, told, own)
            first, last = (code.div(code.mul(count, one), told["PIECES"]) for one in (piece, code.add(piece, 1)))
            text, head = code.div(own, told["HEADS"]), code.rem(own, told["HEADS"])
            bases = []
            for name in ("k", "v"):
                texts, heads = told[f"{name.upper()}_BATCH"], told[f"{name.upper()}_HEAD"]
                bases.append(code.place(stored, told[name], code.add(code.mul(text, texts), code.mul(head, heads))))
            slots = code.place("i64", told["slots"], code.mul(own, told["SLOTS"]))
            row = code.mul(own, told["ROWS"])
            query = code.place("float", told["q"], code.mul(row, width))
            made = code.mul(unit.index, told["ROWS"])
            out = code.place("float", told["out"], code.mul(made, width))
            top, sums = (code.place("float", told[name], made) for name in ("top", "sums"))
            _begin(code, told["ROWS"], width, out, top, sums)
            length = code.sub(last, first)
            strides, within = (told["K_KEY"], told["V_KEY"]), (told["KEYS"], told["wrong"])
            blocks.addresses(code, stored, first, last, told["slots"], slots, bases, strides, places, "0", within)
            with code.loop(0, length, block) as at:
                begin, left = code.add(first, at.index), code.sub(length, at.index)
                now = code.op(f"and i64 {at.index}, {block}")
                then = code.sub(block, now)
                blocks.addresses(
                    code,
                    stored,
                    code.add(begin, block),
                    last,
                    told["slots"],
                    slots,
                    bases,
                    strides,
                    places,
                    then,
                    within,
                )
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
    return code.text()


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
        code.store("float", code.number(LOWEST), top, row.index)
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
        low, gaps, totals = code.constant(LOWEST), "poison", []
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
