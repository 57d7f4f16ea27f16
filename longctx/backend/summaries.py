"""What stands for a few tokens in a model's attention, so that a question can be held against a text never touched.

Owns the formulas: LongHeads' representation of a chunk (arXiv 2402.10685, section 3.2) made of its keys alone, the
bounds of its keys (Quest, arXiv 2406.10774, section 3.3), and what rows of queries make of them. Knows no text and no
file. Keys stay rotated as they were stored, so the queries must stand where a question stands behind a segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longctx.backend.attention import Seen, StopReading, Tap
from longctx.backend.caches import Stored
from longctx.backend.parts import capped
from longctx.protocols import By

CHUNK = 8  # tokens of a chunk at most; with twice as many a third less is found (docs/log.md)


@dataclass(frozen=True, slots=True)
class Summary:
    """The units of a segment in the KV heads ``pairs``, (layer, KV head) each; ``units`` are the tokens of each.

    ``representation`` is [chunks, pairs, dim]. ``low`` and ``high`` [units, pairs, dim] are the least and the largest
    number of every channel over the keys of a unit; a unit without tokens has no chunk and zeros for bounds.
    """

    pairs: tuple[tuple[int, int], ...]
    units: tuple[int, ...]
    representation: Tensor
    low: Tensor
    high: Tensor

    def __post_init__(self) -> None:
        """Raises ValueError where the tensors are not those of so many chunks and heads."""
        chunks, dim = sum(len(chunked(unit)) for unit in self.units), self.low.shape[-1]
        expected = [(count, len(self.pairs), dim) for count in (chunks, len(self.units), len(self.units))]
        found = [tuple(tensor.shape) for tensor in (self.representation, self.low, self.high)]
        if found != expected:
            raise ValueError(f"a summary that should be of {expected} is of {found}")


@dataclass(frozen=True, slots=True)
class Queries:
    """Rows of a question in one layer: ``rows`` [heads, rows, dim], of which ``groups`` heads share a KV head."""

    rows: Tensor
    groups: int
    scale: float
    softcap: float | None


class Listening(Tap):
    """Keeps the queries of the tokens ``rows`` in some layers as ``heard``; ends the pass at the deepest of them."""

    def __init__(self, layers: Iterable[int], rows: slice) -> None:
        wanted = sorted(layers)
        super().__init__(dict.fromkeys(wanted), rows, _unheard, stop=wanted[-1])
        self.heard: dict[int, Queries] = {}

    def see(self, layer: int, seen: Seen) -> None:
        if layer in self.layers:
            groups = seen.query.shape[1] // seen.key.shape[1]
            self.heard[layer] = Queries(seen.query[0, :, self.rows], groups, seen.scaling, seen.softcap)
        if layer == self.stop:
            raise StopReading


def chunked(tokens: int) -> list[int]:
    """The lengths of the chunks that a unit of ``tokens`` tokens is cut into: as even as can be, none without any."""
    count = -(-tokens // CHUNK)
    return [(at + 1) * tokens // count - at * tokens // count for at in range(count)]


def summarise(stored: Stored, units: Sequence[int], pairs: Sequence[tuple[int, int]]) -> Summary:
    """The summary of a segment whose units hold so many tokens each; no chunk reaches over the end of a unit.

    A chunk with keys k_t of mean m is represented by the sum of softmax(m k_t / sqrt(dim)) k_t. The paper weights keys
    by the mean of the chunk's own attention outputs, a query out of the space of values; the mean key needs no queries,
    which a stored segment does not have, and finds more.
    """
    if sum(units) != stored.tokens:
        raise ValueError(f"units of {sum(units)} tokens are not a segment of {stored.tokens}")
    keys = torch.stack([stored.keys[layer][head] for layer, head in pairs], 1)  # [tokens, pairs, dim]
    chunk = _owners([length for unit in units for length in chunked(unit)], keys.device)
    wide, count = keys.float(), int(chunk[-1]) + 1 if len(chunk) else 0
    shape = (count, *keys.shape[1:])
    sizes = torch.bincount(chunk, minlength=count).view(-1, 1, 1)
    mean = wide.new_zeros(shape).index_add_(0, chunk, wide) / sizes
    likely = (wide * mean[chunk]).sum(-1, keepdim=True) * keys.shape[-1] ** -0.5  # [tokens, pairs, 1]
    weight = (likely - _most(likely, chunk, count)[chunk]).exp()
    total = wide.new_zeros(*shape[:2], 1).index_add_(0, chunk, weight)
    chosen = wide.new_zeros(shape).index_add_(0, chunk, weight * wide) / total
    unit = _owners(units, keys.device)
    low, high = -_most(-keys, unit, len(units)), _most(keys, unit, len(units))
    return Summary(tuple(pairs), tuple(units), chosen.to(keys.dtype), low, high)


def _owners(lengths: Sequence[int], device: torch.device) -> Tensor:
    """For each of the tokens of pieces of these lengths the number of its piece."""
    return torch.repeat_interleave(torch.tensor(list(lengths), dtype=torch.long, device=device))


def _most(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """The largest of ``values`` [tokens, …] of each of ``count`` owners; zero where one has none."""
    index = owner.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
    most = values.new_zeros(count, *values.shape[1:])
    return most.scatter_reduce_(0, index, values, "amax", include_self=False)


def joined(summaries: Sequence[Summary]) -> Summary:
    """The summaries of several segments as one, chunk after chunk."""
    pairs = {summary.pairs for summary in summaries}
    if len(pairs) != 1:
        raise ValueError("summaries of different heads cannot be joined")
    parts = [[getattr(s, name) for s in summaries] for name in ("representation", "low", "high")]
    units = tuple(unit for summary in summaries for unit in summary.units)
    return Summary(next(iter(pairs)), units, *(torch.cat(part) for part in parts))


def weighed(summary: Summary, heads: Sequence[tuple[int, int]], asked: Mapping[int, Queries], by: By) -> Tensor:
    """The largest share of each head's attention that one chunk of a unit would get, float32 [heads, units].

    If the text were its chunks, that is: the mean over rows of the softmax of the scores of their representations. By
    ``bounds`` a unit is one chunk, whose score none of its keys can pass. A unit without tokens gets nothing.
    """
    device = summary.low.device
    whole = by == "bounds"
    counts = [int(unit > 0) if whole else len(chunked(unit)) for unit in summary.units]
    unit = _owners(counts, device)
    found = torch.zeros(len(heads), len(counts), device=device)
    for at, (layer, head) in enumerate(heads):
        own = asked[layer]
        pair = summary.pairs.index((layer, head // own.groups))
        scores = scored(own.rows[head].float(), summary, pair, by) * own.scale
        share = capped(scores[:, unit] if whole else scores, own.softcap).softmax(-1).mean(0)
        found[at].scatter_reduce_(0, unit, share, "amax")
    return found


def scored(rows: Tensor, summary: Summary, pair: int, by: By) -> Tensor:
    """Products of ``rows`` [rows, dim] with every chunk's representation, [rows, chunks], without attention's scale.

    By ``bounds`` the most that they can be with any key of every unit, [rows, units].
    """
    if by == "representation":
        return rows @ summary.representation[:, pair].float().T
    low, high = summary.low[:, pair].float(), summary.high[:, pair].float()
    return rows.clamp_min(0) @ high.T + rows.clamp_max(0) @ low.T


def _unheard(layer: int, weights: Tensor) -> None:
    """A pass that listens to queries computes no weights."""
