"""Squeezed Attention (arXiv 2411.09688): keys in clusters, of which each pass reads those that matter to it.

Owns which clusters are read. The keys of a context are clustered once (segmented spherical k-means, per layer and KV
head); a pass scores the clusters' means and reads whole clusters, the likeliest keys first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from longctx.errors import BadOption
from longctx.keys import EVERYTHING, Asked, Choice, Index, LayerKeys
from longctx.kv import _budget, _clusterers, _clusters, _looks, _quickly, _ranges
from longctx.kv._scores import LOWEST, grouped, pooled, scores

_OFTEN = 4  # keys of a cluster among the likeliest: they are small, and a few more are looked at than will be read
_WINDOW = 100  # last queries on which the paper's threshold is measured


@dataclass(frozen=True, slots=True)
class Squeezed:
    """At most ``budget`` slots (or the share ``keep`` of the context) are read by a KV head in a pass.

    ``mode="top-p"`` reads clusters until the budget is full or they hold ``mass`` of the estimated attention, and
    counts what is left out by the clusters' means. The estimate is too low, and so a ``mass`` below 1 stops long before
    that share is read; it never stops before ``least`` slots are. ``mode="paper"`` reads every cluster whose keys are,
    in the mean, likelier than one threshold for all layers and heads (2411.09688, section 3), set so that on the
    context's last queries ``budget`` is read in the mean; single passes may read more. ``levels=2`` looks at groups of
    clusters first and at the clusters of the better half of them then. ``sinks`` and ``recent`` slots are always read.
    ``clusters`` are for each key: None means 0.1, and in the paper's mode 0.05, as published.

    ``clusterer`` is the library that finds them: torch, where the keys are; faiss, from the same start; or
    scikit-learn, from a start drawn far apart (k-means++), as published. The last two work on the CPU. Raises
    MissingExtra where faiss is not installed, also for a stored context that was made with it.
    """

    lossless: ClassVar[bool] = False
    grows: ClassVar[bool] = False

    budget: int | None = None
    keep: float | None = None
    mode: Literal["top-p", "paper"] = "top-p"
    mass: float = 1.0
    least: int = 0
    sinks: int = 4
    recent: int = 128
    clusters: float | None = None
    levels: int = 1
    segment: int = 2048
    iterations: int = 5
    clusterer: Literal["torch", "faiss", "sklearn"] = "torch"

    def __post_init__(self) -> None:
        _budget.check(self.budget, self.keep, "squeezed")
        _budget.check_ends(self.sinks, self.recent, "squeezed")
        if not 0 < self.mass <= 1 or not 0 < self.density <= 1 or self.levels not in (1, 2):
            raise BadOption(
                f"mass={self.mass} and clusters={self.density} must be above 0 and at most 1, and "
                f"levels={self.levels} 1 or 2."
            )
        if self.least < 0 or (self.least and self.mode == "paper"):
            raise BadOption(f"least={self.least} must not be negative, and 0 with mode=paper, which has one threshold.")
        if min(self.segment, self.iterations) < 1:
            raise BadOption(f"segment={self.segment} and iterations={self.iterations} must be at least 1.")
        _clusterers.check(self.clusterer)

    @property
    def density(self) -> float:
        """Clusters for each key."""
        return (0.05 if self.mode == "paper" else 0.1) if self.clusters is None else self.clusters

    @property
    def window(self) -> int:
        return _WINDOW if self.mode == "paper" else 0

    def slots(self, tokens: int) -> int:
        return _budget.slots(tokens, self.budget, self.keep, *self._forced)

    def shortfall(self, tokens: int) -> str:
        return _budget.shortfall(tokens, self.budget, self.keep, *self._forced)

    @property
    def _forced(self) -> tuple[int, str, str]:
        """Slots that a budget must pass, for whom and why: with ``least``, what may be missing to a cluster too."""
        always, floor = self.sinks + self.recent, self.least + _clusters.largest(self.density) - 1
        if self.least <= always or floor <= always:
            return always, "squeezed", "sinks and recent"
        return floor, "squeezed", "least, and up to the end of a cluster"

    def reach(self, tokens: int, behind: int = 0) -> int:
        return tokens

    def index(self, layer: LayerKeys, budget: int, before: Index | None = None) -> Index:
        first, last = self.sinks, layer.tokens - self.recent
        cluster = _clusterers.by(self.clusterer)
        stored, found = _clusters.clustered(
            layer.keys, layer.values, first, last, self.density, self.segment, self.iterations, cluster
        )
        centre = found.pop("centre")
        found["logs"] = _looks.logs(found["sizes"])
        if self.mode == "paper":
            found["window"] = _window(layer, found, centre)
        if self.levels == 2:
            order, groups = _clusters.grouped(found, centre, self.density, self.iterations, cluster)
            found = {name: _ordered(value, order) for name, value in found.items()} | groups
        elif self.mode == "paper":
            del found["says"]  # it estimates nothing of what it does not read
        return Index(layer.tokens, budget, stored, found | {"centre": centre})

    def settle(self, indices: Sequence[Index]) -> list[Index]:
        """In the paper's mode, one threshold over all layers and heads: the quantile that reads ``budget`` keys."""
        if self.mode != "paper" or not indices:
            return list(indices)
        likely = torch.cat([index.tensors["window"].flatten() for index in indices])
        keys = torch.cat([index.tensors["sizes"].flatten() for index in indices])
        order = likely.argsort(descending=True)
        wanted = (indices[0].budget - self.sinks - self.recent) / (indices[0].tokens - self.sinks - self.recent)
        within = int((keys[order].cumsum(0) <= math.floor(wanted * int(keys.sum()))).sum())
        threshold = likely[order[min(within, len(order) - 1)]].reshape(1)
        own = [{name: one for name, one in index.tensors.items() if name != "window"} for index in indices]
        return [
            replace(index, tensors=tensors | {"threshold": threshold})
            for index, tensors in zip(indices, own, strict=True)
        ]

    def choose(self, index: Index, asked: Asked) -> Choice:
        if self._is_plain and (quick := _quickly.choice(index, asked, self.sinks, self.recent)) is not None:
            return quick
        own, says = index.tensors, self.mode != "paper"
        look = _looks.visited(own, asked, self._floor) if self.levels == 2 else _looks.every(own, says)
        first, second = look.orders(asked, own["centre"])
        forced = _ranges.ends(index.tokens, self.sinks, self.recent, asked.rows.device)
        shares, log = _looks.softmax(first if self.mode == "paper" else second)
        norm = look.joined(log)
        if self.mode == "paper":
            likely = _pooled(shares, log - norm, asked).log() - look.logs
            taken = (likely > own["threshold"]) & (look.sizes > 0)
        else:
            known = self._known(asked)
            norm = torch.logaddexp(norm, known)
            likely = _pooled(shares, log - norm, asked)
            before = pooled((known - norm).exp().unsqueeze(-1), asked) if self.mass < 1 else None
            taken = self._taken(likely, look.sizes, before, index.budget - len(forced))
        if look.whole(taken):
            return EVERYTHING
        slots, counts = _ranges.behind(forced, *_ranges.members(taken, look.starts, look.sizes))
        return Choice(slots, counts, look.left(taken, first, second, says))

    @property
    def _is_plain(self) -> bool:
        """Whether clusters are read by their likelihood until the budget is full, and by nothing else."""
        return self.mode == "top-p" and self.levels == 1 and self.mass == 1

    @property
    def _floor(self) -> int:
        """Slots that are read at least beside those that always are."""
        return max(0, self.least - self.sinks - self.recent)

    def _known(self, asked: Asked) -> Tensor:
        """The logarithm of the mass of what is always read, float32 [batch, kv_heads, rows]."""
        if not self.sinks + self.recent:
            return torch.full(asked.rows.shape[:-1], LOWEST, device=asked.rows.device)
        always = _ranges.at_ends(asked.keys, self.sinks, self.recent)
        return _looks.softmax(scores(asked.rows, always, asked.scale, asked.softcap))[1]

    def _taken(self, likely: Tensor, sizes: Tensor, read: Tensor | None, room: int) -> Tensor:
        """Clusters by the likelihood of one of their keys, within ``room`` slots.

        With the share that is ``read`` already, [batch, kv_heads, 1], only until ``mass`` and ``least`` are; None:
        whatever it is.
        """
        worth, clusters = likely / sizes.clamp_min(1), likely.shape[-1]
        some = min(clusters, max(1, room // _OFTEN))
        while True:
            order = worth.topk(some, dim=-1).indices
            count = sizes.expand_as(likely).gather(-1, order)
            within = count.cumsum(-1)
            if some == clusters or bool((within[..., -1] > room).all()):
                break
            some = min(clusters, 2 * some)
        wanted = (within <= room) & (count > 0)
        if read is not None:
            share = likely.gather(-1, order)
            wanted = wanted & ((read + share.cumsum(-1) - share < self.mass) | (within - count < self._floor))
        return torch.zeros_like(likely, dtype=torch.bool).scatter(-1, order, wanted)

    def index_bytes(self, tokens: int, heads: int, kv_heads: int, dim: int, itemsize: int) -> int:
        found = math.ceil(self.density * tokens)
        states = 2 if self.mode == "paper" and self.levels == 1 else 3
        groups = math.ceil(self.density * found) if self.levels == 2 else 0
        return kv_heads * (8 * tokens + found * (states * dim * itemsize + 20) + groups * (2 * dim * itemsize + 24))


def _window(layer: LayerKeys, found: Mapping[str, Tensor], centre: Tensor) -> Tensor:
    """How likely one key of each cluster is in the mean over the last queries, float32 log [kv_heads, clusters]."""
    queries = grouped(layer.queries, layer.keys.shape[0])
    log = scores(queries, found["means"].float() + centre, layer.scale, layer.softcap)
    norm = (log + found["logs"][:, None]).logsumexp(-1, keepdim=True)
    likely = (log - norm).logsumexp(1) - math.log(queries.shape[1])
    return likely.masked_fill(found["sizes"] == 0, LOWEST)


def _pooled(shares: Tensor, weight: Tensor, asked: Asked) -> Tensor:
    """``pooled`` shares [batch, kv_heads, rows, some], each row of them times the exponential of ``weight``."""
    return pooled(shares * weight.exp().unsqueeze(-1), asked)


def _ordered(states: Tensor, order: Tensor) -> Tensor:
    return states[torch.arange(len(states), device=states.device)[:, None], order]


PLUGIN = Squeezed
