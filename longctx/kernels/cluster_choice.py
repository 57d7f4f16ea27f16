"""Which clusters of keys are read within a budget, and what the others would say, on a CPU.

Owns what it takes and gives. A pass chooses anew in every layer; of some forty operations on a few thousand numbers
most of the time is their beginning. Masses are shared among threads, and what follows is one thread's for each KV head.
Knows no policy.
"""

from __future__ import annotations

import functools
import itertools
import struct
from array import array
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longctx.kernels import blocks, choice_code, few_queries, machine
from longctx.kernels.loops import FORMATS

_WIDEST = few_queries.WIDEST // 2  # numbers of a mean: both statistics of a block are worked on in the nearest caches


class Clusters(NamedTuple):
    """The clusters of each KV head's keys, and what is known of each."""

    means: Tensor  # [kv_heads, clusters, dim], counted from the centre
    spreads: Tensor  # [kv_heads, clusters, dim], variances of keys
    says: Tensor  # [kv_heads, clusters, dim], means of values
    centre: Tensor  # float32 [kv_heads, 1, dim]
    logs: Tensor  # float32 [kv_heads, clusters], of sizes
    sizes: Tensor  # long [kv_heads, clusters]
    starts: Tensor  # long [kv_heads, clusters], the first of a cluster's slots, which stand side by side


class Chosen(NamedTuple):
    """What is read, and what is thought of the rest; of a KV head that reads everything this says nothing."""

    slots: Tensor  # long [batch, kv_heads, budget]; 0 behind those that are read
    counts: Tensor  # long [batch, kv_heads], how many are
    out: Tensor  # float32 [batch, kv_heads, rows, dim], what clusters that are not read say by their means
    log: Tensor  # float32 [batch, kv_heads, rows], the logarithm of their mass by these
    wide: Tensor  # the same by their spreads too


def suits(own: Clusters, keys: Tensor) -> bool:
    """Whether ``choose`` can be had for clusters of ``keys`` [kv_heads, slots, dim]."""
    like = all(one.dtype == keys.dtype and one.is_contiguous() for one in own[:3]) and all(one.is_cpu for one in own)
    width = keys.shape[2]
    alike = own.says.shape[2] == width and width <= _WIDEST
    return like and alike and keys.is_cpu and keys.stride(2) == 1 and bool(version(keys.dtype, width))


def weighs(weights: Tensor, batch: int, heads: int, rows: int) -> bool:
    """Whether ``choose`` takes such weights for so many rows."""
    shapes = len(weights.shape) == 4 and all(
        one in (1, most) for one, most in zip(weights.shape[:2], (batch, heads), strict=True)
    )
    return shapes and weights.shape[2:] == (rows, 1) and weights.dtype == torch.float32 and weights.is_cpu


def version(dtype: torch.dtype, width: int) -> str:
    """Which compiler ``choose`` is had from for keys of a format and a width; empty where it is not."""
    return machine.version(dtype, width, _right)


def reference(
    rows: Tensor, keys: Tensor, own: Clusters, scale: float, ends: tuple[int, int], budget: int, weights: Tensor | None
) -> Chosen:
    """What ``choose`` gives, up to the order of its sums."""
    (heads, tokens), (batch, _, count, _) = keys.shape[:2], rows.shape
    sinks, recent = ends
    forced = [*range(sinks), *range(tokens - recent, tokens)]
    wide = rows.double() * scale
    known = (wide @ keys[:, forced].double().transpose(-1, -2)).logsumexp(-1)
    first = wide @ (own.means.double() + own.centre).transpose(-1, -2) + own.logs[:, None]
    second = first + 0.5 * wide.square() @ own.spreads.double().transpose(-1, -2)
    norm = torch.logaddexp(second.logsumexp(-1), known)
    by = second.new_full((1, 1, count), 1 / count) if weights is None else weights[..., 0].double()
    # clusters that are as likely as each other come out so in float32
    worth = (((second - norm[..., None]).exp() * by[..., None]).sum(2) / own.sizes.clamp_min(1)).float()
    order = worth.argsort(dim=-1, descending=True, stable=True)
    within = own.sizes.expand_as(worth).gather(-1, order).cumsum(-1) <= budget - len(forced)
    taken = torch.zeros_like(within).scatter(-1, order, within)
    slots = torch.zeros(batch, heads, budget, dtype=torch.long, device=rows.device)
    for one, head in itertools.product(range(batch), range(heads)):
        inside = zip(taken[one, head].tolist(), own.starts[head].tolist(), own.sizes[head].tolist(), strict=True)
        read = forced + [slot for wanted, start, size in inside if wanted for slot in range(start, start + size)]
        slots[one, head, : len(read)] = torch.tensor(read, dtype=torch.long, device=rows.device)
    some, others = (mass.masked_fill(taken[:, :, None], blocks.LOWEST) for mass in (first, second))
    said, log, variances = some.softmax(-1) @ own.says.double(), some.logsumexp(-1), others.logsumexp(-1)
    return Chosen(slots, (own.sizes * taken).sum(-1) + len(forced), said.float(), log.float(), variances.float())


def choose(
    rows: Tensor, keys: Tensor, own: Clusters, scale: float, ends: tuple[int, int], budget: int, weights: Tensor | None
) -> Chosen:
    """The slots of the likeliest clusters, as long as there is room for all of a cluster, within a ``budget``.

    The first slots of ``keys`` [kv_heads, slots, dim] and the last, as many as ``ends`` say, are read in any case. How
    likely a key of a cluster is for ``rows`` [batch, kv_heads, rows, dim] says the second order of its mass: its size
    times the exponential of its mean's logit and half the variance of its keys'. Shares of it, beside what the ends
    have, are summed over the rows by ``weights``, float32 [batch or 1, kv_heads or 1, rows, 1], None: all alike, and
    divided by the size. Of clusters as likely as each other the first are read; slots stand in ascending clusters.
    Raises ValueError for other shapes, a budget below the ends, and where the clusters do not suit, and IndexError for
    clusters that would be read and have slots that are none of the keys or more than the budget.
    """
    batch, heads, count, width = rows.shape
    like = own.means.shape == own.spreads.shape == own.says.shape == (heads, own.means.shape[1], width)
    flat = all(one.shape == own.means.shape[:2] for one in own[4:]) and own.centre.shape == (heads, 1, width)
    formats = own.sizes.dtype == own.starts.dtype == torch.long and own.logs.dtype == own.centre.dtype == torch.float32
    by = weights is None or weighs(weights, batch, heads, count)
    fit = like and flat and formats and by and (heads, width) == (keys.shape[0], keys.shape[2])
    if not (fit and rows.is_cpu and suits(own, keys)) or sum(ends) > min(budget, keys.shape[1]):
        raise ValueError(
            f"rows {tuple(rows.shape)}, keys {tuple(keys.shape)} of {keys.dtype} on {keys.device}, clusters "
            f"{[tuple(one.shape) for one in own]}, ends {ends}, budget {budget}: it takes clusters as wide as the rows "
            "on a CPU, where suits() says yes."
        )
    return _chosen(rows, keys, own, scale, ends, budget, weights)


def _chosen(
    rows: Tensor, keys: Tensor, own: Clusters, scale: float, ends: tuple[int, int], budget: int, weights: Tensor | None
) -> Chosen:
    (batch, heads, count, width), some = rows.shape, own.means.shape[1]
    sets, lanes, always = batch * heads, machine.lanes(), sum(ends)
    padded = -(-some // (2 * lanes)) * 2 * lanes
    slots = torch.empty(batch, heads, budget, dtype=torch.long, device="cpu")
    counts = torch.empty(batch, heads, dtype=torch.long, device="cpu")
    out = torch.empty(batch, heads, count, width, dtype=torch.float32, device="cpu")
    log, wide = torch.empty(2, batch, heads, count, dtype=torch.float32, device="cpu").unbind()
    rooms = choice_code.rooms(count, width, always, padded)
    scratch = torch.empty(sets * sum(rooms), dtype=torch.float32, device="cpu")
    begins = itertools.accumulate((4 * sets * room for room in rooms[:-1]), initial=scratch.data_ptr())
    by = _alike(count) if weights is None else weights[..., 0].expand(batch, heads, count).contiguous()
    facts = [one.contiguous() for one in (own.centre, own.means, own.spreads, *own[4:], own.says)]
    held = [rows.float().contiguous(), by, keys, *facts, slots, counts, out, log, wide]
    (scaling,) = struct.unpack("<i", struct.pack("<f", scale))
    measures = (sets, heads, count, some, padded, keys.shape[1], ends[0], always, budget, scaling)
    steps = (0 if weights is None else count, *keys.stride()[:2])
    run, wrong = _compiled(keys.dtype, width, blocks.tiles(count)), array("q", (0,))
    machine.run(run, (*(one.data_ptr() for one in held), *begins, wrong.buffer_info()[0], *measures, *steps))
    if wrong[0]:
        raise IndexError(f"clusters have slots that are none of {keys.shape[1]} keys, or more than {budget}.")
    return Chosen(slots, counts, out, log, wide)


@functools.lru_cache(maxsize=64)  # the same for all layers of a pass, and for the next one
def _alike(rows: int) -> Tensor:
    """What each of some rows weighs among them, where all weigh the same."""
    return torch.full((rows,), 1 / rows, dtype=torch.float32, device="cpu")


def _right(dtype: torch.dtype) -> bool:
    width, block = machine.lanes(), 2 * machine.lanes()
    some = block + 9
    numbers = torch.arange(3 * some * width, dtype=torch.float32, device="cpu").view(1, -1, width)
    every = (7 * numbers).remainder(11).div(width).to(dtype)
    keys, sizes = every[:, :some], torch.arange(some, device="cpu").remainder(3)[None] + 1
    logs, starts = sizes.float().log(), sizes.cumsum(-1) - sizes + 1
    own = Clusters(keys, keys.abs(), keys.flip(1), keys[:, :1].float(), logs, sizes, starts)
    given = (keys[None, :, :2], every, own, 0.1, (1, 2), block, None)
    found, expected = _chosen(*given), reference(*given)
    return all(torch.allclose(one.float(), two.float(), rtol=1e-3) for one, two in zip(found, expected, strict=True))


@functools.cache
def _compiled(dtype: torch.dtype, width: int, tiles: tuple[int, ...]) -> Any:
    return machine.compiled(choice_code.written(FORMATS[dtype], width, tiles, machine.lanes()))
