"""Attention of a few queries over many keys by the tiles of a processor that has some: as long as reading them takes.

Owns the machine code. Sixteen keys by sixteen rows are multiplied at once as keys are stored, so that a vector has one
key's logits of all rows and softmax needs no sum across a vector; values are laid beside each other in pairs once for
all rows (Intel, Advanced Matrix Extensions: TDPBF16PS). Softmax is made as it goes, a block of keys at a time; its
weights are rounded to bfloat16, sums are made in float32. Knows no cache and no policy.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longctx.kernels import blocks, few_queries, machine, tile_blocks, tiles
from longctx.kernels.blocks import LOWEST
from longctx.kernels.few_queries import States
from longctx.kernels.loops import Loops
from longctx.kernels.tile_blocks import BLOCK, HALF
from longctx.kernels.tiles import DEEP, SIDE

_LEAST = 1e-6  # as a scale: a smaller one is multiplied into the rows
_HIDDEN = -1e30  # as a logit, of a key that is not seen: far below all others, and a number whatever the scale
REVISION = 2  # to be raised when the way of attending changes: what was tried before then holds no more
_TOLD = (
    "q", "packed", "out", "top", "sums", "hidden", "HEADS", "ROWS", "GROUPS", "PIECES", "SETS", "SCALE", "OWN",
    "KEYS", "k", "K_BATCH", "K_HEAD", "K_KEY", "v", "V_BATCH", "V_HEAD", "V_KEY",
    "MORE", "k2", "K2_BATCH", "K2_HEAD", "K2_KEY", "v2", "V2_BATCH", "V2_HEAD", "V2_KEY", "number", "count",
)  # fmt: skip


def suits(key: Tensor, value: Tensor) -> bool:
    """Whether ``attend`` can be had for keys and values [batch, kv_heads, keys, dim]: on a CPU with tiles, alike.

    They are of bfloat16, and their numbers stand side by side, in whole tiles.
    """
    return bool(version(key.dtype, key.shape[-1])) and few_queries.suits(key, value)


def version(dtype: torch.dtype, width: int) -> str:
    """Which compiler ``attend`` is had from for keys of a format and a width; empty where it is not."""
    there = dtype == torch.bfloat16 and not width % DEEP and tiles.have()
    return machine.version(dtype, width, _right) if there else ""


def lay(seen: Tensor) -> Tensor:
    """Which of the last keys each row sees, bool [rows, last keys], as ``attend`` takes it: to be made once for many.

    float32 [rows / 16, last keys, 16], what is added to a logit.
    """
    rows, own = seen.shape
    hidden = torch.zeros(-(-rows // SIDE) * SIDE, own, dtype=torch.float32, device="cpu")
    hidden[:rows].masked_fill_(~seen, _HIDDEN)
    return hidden.view(-1, SIDE, own).transpose(1, 2).contiguous()


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, hidden: Tensor | None = None, more: States | None = None
) -> tuple[Tensor, Tensor]:
    """Rows [batch, kv_heads, rows, dim] over keys and values [batch or 1, kv_heads, keys, dim], all of bfloat16.

    ``more`` keys and values stand behind those, elsewhere. Of the last keys a row sees those that ``lay`` was told of,
    all without ``hidden``; of all keys it must see some. Returns the rows' outputs, float32 [batch, kv_heads, rows,
    dim], and the logarithms of their softmax's denominators, float32 [batch, kv_heads, rows]. Infinite logits may make
    outputs that are no numbers. Raises ValueError for keys that do not suit, for no keys or rows, and for other shapes.
    """
    every = [(key, value)] if more is None else [(key, value), more]
    rows, keys = query.shape[2], sum(one.shape[2] for one, _ in every)
    fits = hidden is None or (len(hidden) == -(-rows // SIDE) and hidden.shape[1] <= keys)
    if not fits or not rows * keys or not all(_fits(query, *states) for states in every):
        raise ValueError(
            f"query {tuple(query.shape)} of {query.dtype}, keys and values "
            f"{[(tuple(one.shape), tuple(other.shape), one.dtype, str(one.device)) for one, other in every]}: it takes "
            "rows as wide as keys, in bfloat16 on a CPU, where suits() says yes."
        )
    return _attended(query, every, scale, hidden)


def _fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    like = query.is_cpu and query.dtype == key.dtype and key.shape == value.shape and len(key) in (1, len(query))
    return like and (query.shape[1], query.shape[3]) == (key.shape[1], key.shape[3]) and suits(key, value)


def _attended(
    query: Tensor, every: Sequence[States], scale: float, hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    batch, heads, rows, width = query.shape
    # what is scaled must keep its order, and what is hidden must stay low
    factor, scale = (math.copysign(1.0, scale), abs(scale)) if abs(scale) > _LEAST else (scale, 1.0)
    wide = (query.float() if factor == 1.0 else query.float() * factor).contiguous()
    threads, sets, groups = machine.threads() or 1, batch * heads, -(-rows // SIDE)
    pieces = min(threads // math.gcd(sets, threads), sum(-(-key.shape[2] // BLOCK) for key, _ in every))
    several = (pieces,) if pieces > 1 else ()
    out = torch.empty(*several, batch, heads, rows, width, dtype=torch.float32, device="cpu")
    log = torch.empty(*several, batch, heads, groups * SIDE, dtype=torch.float32, device="cpu")
    sums = torch.empty_like(log)
    packed = torch.empty(pieces * sets * _packed_bytes(groups, width), dtype=torch.uint8, device="cpu")
    (scaling,) = struct.unpack("<i", struct.pack("<f", scale))
    last, own = (0, 0) if hidden is None else (hidden.data_ptr(), hidden.shape[1])
    machine.run(
        _compiled(width, rows <= HALF and hidden is None),
        (
            *(one.data_ptr() for one in (wide, packed, out, log, sums)),
            *(last, heads, rows, groups, pieces, sets, scaling, own),
            *(number for states in every for number in few_queries.standing(*states)),
            *(0,) * (9 * (2 - len(every))),
        ),
    )
    log = log[..., :rows]
    if pieces == 1:
        return out, log
    return (out * log.softmax(0).unsqueeze(-1)).sum(0), log.logsumexp(0)


def _packed_bytes(groups: int, width: int) -> int:
    """Bytes that so many groups of rows take once they are packed, one of half a vector twice."""
    return (groups + 1) * SIDE * width * 2


def _right(dtype: torch.dtype) -> bool:
    width, heads = 3 * DEEP, machine.threads() or 1  # a set for each thread, which meets a whole block and a part
    numbers = torch.arange(2 * heads * (BLOCK + SIDE) * 2 * width, dtype=torch.float32, device="cpu")
    key, value = (numbers % 31 / 16).sin().to(dtype).view(2, 1, heads, BLOCK + SIDE, 2 * width)[..., :width]
    for rows in (HALF, SIDE + 1):
        query = value[:, :, :rows]
        found, logits = _attended(query, [(key, value)], 1.0), query.float() @ key.float().transpose(-1, -2)
        out, log = logits.softmax(-1) @ value.float(), logits.logsumexp(-1)
        both = [tuple(one[:, :, part] for one in (key, value)) for part in (slice(BLOCK), slice(BLOCK, None))]
        whole = lay(torch.ones(rows, 2 * SIDE, dtype=torch.bool, device="cpu"))
        for said in (found, _attended(query, both, 1.0, whole)):
            if not torch.allclose(said[0], out, atol=0.01) or not torch.allclose(said[1], log, rtol=1e-4):
                return False
    return True


@functools.cache  # machine code, which takes a while to compile
def _compiled(width: int, half: bool) -> Any:
    return machine.compiled(_code(width, machine.lanes(), half))


def _code(width: int, lanes: int, half: bool) -> str:
    """``run`` for a thread's share: some of the keys of some of the sets, a block of keys at a time for all rows.

    With ``half`` the rows are so few that a vector holds the logits of two keys.
    """
    code = Loops(lanes)
    tiles.declare(code)
    with code.function("void @run(ptr %given)"):
        told = code.told(_TOLD)
        scratch = tile_blocks.scratch(code, width)
        bits = code.op(f"trunc i64 {told['SCALE']} to i32")
        scale = code.splat(code.op(f"bitcast i32 {bits} to float"))
        twos = code.vec("fmul", scale, code.constant(1 / math.log(2)))
        low, high = code.share(told["number"], told["count"], code.mul(told["SETS"], told["PIECES"]))
        tiles.begin(code)
        with code.loop(low, high) as unit:
            piece, own = code.div(unit.index, told["SETS"]), code.rem(unit.index, told["SETS"])
            first_blocks, more_blocks = (code.div(code.add(told[n], BLOCK - 1), BLOCK) for n in ("KEYS", "MORE"))
            whole = code.add(first_blocks, more_blocks)
            first, last = (code.div(code.mul(whole, one), told["PIECES"]) for one in (piece, code.add(piece, 1)))
            text, head = code.div(own, told["HEADS"]), code.rem(own, told["HEADS"])
            bases = blocks.bases(code, "i16", told, text, head)
            query = code.place("float", told["q"], code.mul(code.mul(own, told["ROWS"]), width))
            room = code.mul(code.add(told["GROUPS"], 1), width * 2 * SIDE)
            packed = code.place("i8", told["packed"], code.mul(unit.index, room))
            tile_blocks.pack(code, width, half, query, packed, told["ROWS"])
            out = code.place("float", told["out"], code.mul(code.mul(unit.index, told["ROWS"]), width))
            logs = code.mul(code.mul(unit.index, told["GROUPS"]), SIDE)
            top, sums = (code.place("float", told[name], logs) for name in ("top", "sums"))
            _begin(code, told, width, out, top, sums)
            with code.loop(first, last) as at:
                behind = code.op(f"icmp sge i64 {at.index}, {first_blocks}")

                def either(one: str, other: str, kind: str = "i64", behind: str = behind) -> str:
                    return code.op(f"select i1 {behind}, {kind} {other}, {kind} {one}")

                start = code.mul(code.sub(at.index, either("0", first_blocks)), BLOCK)
                left = code.least_of(code.sub(either(told["KEYS"], told["MORE"]), start), BLOCK)
                states = [
                    (
                        either(bases[n], bases[f"{n}2"], "ptr"),
                        either(told[f"{n.upper()}_KEY"], told[f"{n.upper()}2_KEY"]),
                    )
                    for n in ("k", "v")
                ]
                found = tile_blocks.standing(code, width, states, start, left, scratch)
                tile_blocks.interleave(code, width, found, scratch["mixed"])
                with code.loop(0, told["GROUPS"]) as group:
                    here = code.place("i8", packed, code.mul(group.index, width * 2 * SIDE))
                    begin = code.mul(group.index, SIDE)
                    state = (code.place("float", top, begin), code.place("float", sums, begin))
                    some = code.least_of(code.sub(told["ROWS"], begin), SIDE)
                    tile_blocks.multiply(code, width, half, here, found[0], scratch["logits"])
                    if not half:
                        before = code.sub(code.add(told["KEYS"], told["MORE"]), told["OWN"])
                        own_keys = code.sub(before, code.add(start, either("0", told["KEYS"])))
                        mask = code.place("float", told["hidden"], code.mul(code.mul(group.index, told["OWN"]), SIDE))
                        tile_blocks.hide(code, mask, own_keys, left, scratch["logits"])
                    tile_blocks.weigh(code, half, twos, left, state, scratch)
                    tile_blocks.add(code, width, code.place("float", out, code.mul(begin, width)), some, scratch)
            if half:
                tile_blocks.join(code, sums)
            with code.loop(0, code.mul(told["GROUPS"], SIDE), SIDE) as at:
                code.store(
                    code.vector, code.vec("fmul", code.wide("float", top, at.index), scale), top, at.index, "float"
                )
            blocks.end(code, told["ROWS"], width, out, top, sums)
        tiles.end(code)
    return code.text()


def _begin(code: Loops, told: dict[str, str], width: int, out: str, top: str, sums: str) -> None:
    """Nothing has been seen yet."""
    with code.loop(0, code.mul(told["GROUPS"], SIDE), SIDE) as at:
        code.store(code.vector, code.constant(LOWEST), top, at.index, of="float")
        code.store(code.vector, "zeroinitializer", sums, at.index, of="float")
    with code.loop(0, code.mul(told["ROWS"], width), SIDE) as at:
        code.store(code.vector, "zeroinitializer", out, at.index, of="float")
