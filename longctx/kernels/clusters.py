"""What a few rows would give to clusters of keys, on a CPU: two statistics of each are read once, and for all rows.

Owns the machine code. Knows no policy.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from longctx.kernels import blocks, few_queries, machine
from longctx.kernels.loops import FORMATS, Loops

LOWEST = few_queries.LOWEST
_TOLD = (
    "q", "squares", "means", "spreads", "added", "logs", "first", "second", "HEADS", "ROWS", "CLUSTERS", "PADDED",
    "SETS", "number", "count",
)  # fmt: skip
_WIDEST = few_queries.WIDEST // 2  # numbers of a mean: both statistics of a block are worked on in the nearest caches


def suits(means: Tensor, spreads: Tensor) -> bool:
    """Whether ``masses`` can be had for two statistics of clusters [kv_heads, clusters, dim]."""
    return (
        means.shape == spreads.shape
        and means.dtype == spreads.dtype
        and means.is_cpu
        and spreads.is_cpu
        and means.is_contiguous()
        and spreads.is_contiguous()
        and means.shape[2] <= _WIDEST
        and bool(version(means.dtype, means.shape[2]))
    )


def version(dtype: torch.dtype, width: int) -> str:
    """Which compiler ``masses`` is had from for statistics of a format and a width; empty where it is not."""
    return machine.version(dtype, width, _right)


def reference(rows: Tensor, means: Tensor, spreads: Tensor, logs: Tensor, added: Tensor, scale: float) -> Tensor:
    """What ``masses`` gives, up to the order of its sums, for the clusters that there are."""
    wide = rows.float() * scale
    first = wide @ means.float().transpose(-1, -2) + added[..., None] + logs[:, None]
    return torch.stack((first, first + 0.5 * wide.square() @ spreads.float().transpose(-1, -2)))


def masses(rows: Tensor, means: Tensor, spreads: Tensor, logs: Tensor, added: Tensor, scale: float) -> Tensor:
    """Logarithms of what ``rows`` [batch, kv_heads, rows, dim] would give to clusters.

    Returns two, float32 [2, batch, kv_heads, rows, clusters and as many that are none as fill the last block]. The
    first is the mean of a cluster's logits, with the logarithm of its size and what is ``added`` to a row's logits,
    float32 [batch, kv_heads, rows]; the second has half the variance too: the second order of a sum of exponentials.
    ``means`` and ``spreads`` (variances of keys) are [kv_heads, clusters, dim], ``logs`` float32 [kv_heads, clusters].
    What fills has ``LOWEST``. Raises ValueError for other shapes, and where they do not suit.
    """
    batch, heads, count, width = rows.shape
    fit = (heads, width) == (means.shape[0], means.shape[2]) and logs.shape == means.shape[:2]
    if not (fit and added.shape == rows.shape[:3] and rows.is_cpu and suits(means, spreads)):
        raise ValueError(
            f"rows {tuple(rows.shape)}, means {tuple(means.shape)} of {means.dtype}, logs {tuple(logs.shape)}, added "
            f"{tuple(added.shape)}: it takes statistics as wide as the rows on a CPU, where suits() says yes."
        )
    return _masses(rows, means, spreads, logs, added, scale)


def _masses(rows: Tensor, means: Tensor, spreads: Tensor, logs: Tensor, added: Tensor, scale: float) -> Tensor:
    batch, heads, count, width = rows.shape
    wide = (rows.float() * scale).contiguous()
    logs, added = logs.float().contiguous(), added.float().contiguous()
    block = 2 * machine.lanes()
    padded = -(-means.shape[1] // block) * block
    out = torch.empty(2, batch, heads, count, padded, dtype=torch.float32, device="cpu")
    squares = wide.square().mul_(0.5)
    pointers = (one.data_ptr() for one in (wide, squares, means, spreads, added, logs, *out))
    run = _compiled(means.dtype, width, blocks.tiles(count))
    machine.run(run, (*pointers, heads, count, means.shape[1], padded, batch * heads))
    return out


def _right(dtype: torch.dtype) -> bool:
    width = machine.lanes()
    x = (torch.arange(5 * width, dtype=torch.float32, device="cpu").view(1, 5, width) / width).to(dtype)
    logs, added = x[..., 0].float(), x[:, :2, 1][None].float()
    given = (x[None, :, :2], x, x, logs, added, 0.1)
    return torch.allclose(_masses(*given)[..., :5], reference(*given), rtol=1e-4)


@functools.cache
def _compiled(dtype: torch.dtype, width: int, tiles: tuple[int, ...]) -> Any:
    return machine.compiled(_code(FORMATS[dtype], width, tiles, machine.lanes()))


def _code(stored: str, width: int, tiles: tuple[int, ...], lanes: int) -> str:
    """``run`` for a thread's share: blocks of clusters, of one text and KV head each, for all rows."""
    code, block = Loops(lanes), 2 * lanes
    for rows in tiles:
        _tile(code, stored, rows, width)
    with code.function("void @run(ptr %given)"):
        room = code.op(f"alloca [{2 * width * block} x float], align 64")
        told = code.told(_TOLD)
        clusters = told["CLUSTERS"]
        per = code.div(code.add(clusters, block - 1), block)
        low, high = code.share(told["number"], told["count"], code.mul(told["SETS"], per))
        with code.loop(low, high) as unit:
            own, begin = code.div(unit.index, per), code.mul(code.rem(unit.index, per), block)
            start = code.mul(code.rem(own, told["HEADS"]), clusters)
            first, last = code.add(start, begin), code.add(start, code.add(clusters, -1))
            for place, name in enumerate(("means", "spreads")):

                def where(key: str, base: str = told[name]) -> str:
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
                code.choose(rest, {n: f"call void @tile{n}({given})" for n in tiles})
    return code.text()


def _tile(code: Loops, stored: str, rows: int, width: int) -> None:
    """The masses of a block's clusters, of which ``left`` or all are real, for ``rows`` rows."""
    names = ("q", "squares", "keys", "logs", "added", "first", "second", "means", "spreads")
    head = f"internal void @tile{rows}({', '.join(f'ptr %{name}' for name in names)}, i64 %stride, i64 %left)"
    with code.function(head):
        seen = blocks.real(code, "%left")
        logs, low = blocks.added(code, "%logs", seen), code.constant(LOWEST)
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
