"""What the loop asks of a controller, and what controllers share: calibrated acceptance and the cost of rows.

Knows counts, values and seconds; no drafter and no model.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from longctx.decoding.tree import TokenTree
from longctx.drafts import Budget

_BINS = 10  # of the drafters' own estimate
_PRIOR = 6.0  # tries that a drafter's own estimate counts for where none was judged
_KEEPS = 0.98  # of the counts, per round: what was long ago matters less
_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)  # row counts whose cost is kept apart
_SLOPE = 0.02  # what a row is taken to add to the cost of one, until it was measured
_NEW = 0.25  # weight of a new measurement
_TINY = 1e-300
_ODD = 3.0  # a pass this many times slower than expected was disturbed, and counts for little


class Control(Protocol):
    """A controller at work on one request."""

    def plan(self, depth: int) -> Budget | None:
        """How much may be drafted in the next round, whose paths may be ``depth`` long; None: nothing."""
        ...

    def cut(self, tree: TokenTree) -> TokenTree:
        """The part of what was drafted that is worth its rows."""
        ...

    def feedback(self, tokens: Sequence[int], rows: int, seconds: float) -> None:
        """What a round of ``rows`` committed, and how long its pass took."""
        ...


class Controller(Protocol):
    """A method of deciding. Frozen: all options are fields."""

    def begin(self) -> Control: ...


class Acceptance:
    """How often nodes were right, by who proposed them and how sure they were; corrects the drafters' estimates.

    A node is judged when its parent was right, whether it was verified or not: what came out says what was right. An
    estimate counts for less the more of its kind were judged: where rows cost nearly nothing, what is left of it would
    have them filled by a drafter that is never right.
    """

    def __init__(self) -> None:
        self._hits: dict[tuple[int, int], float] = {}
        self._tries: dict[tuple[int, int], float] = {}

    def reach(self, tree: TokenTree) -> TokenTree:
        """The tree with calibrated values: the chance that a node and all above it are right."""
        reach = np.zeros(len(tree))
        for node, (parent, source, sure) in enumerate(
            zip(tree.parents.tolist(), tree.sources.tolist(), _conditional(tree), strict=True)
        ):
            key = (source, int(sure * _BINS))
            tries = self._tries.get(key, 0.0)
            counts = _PRIOR / (1.0 + tries / _PRIOR)
            chance = (self._hits.get(key, 0.0) + counts * sure) / (tries + counts)
            reach[node] = min(1.0, chance) * (reach[parent] if parent >= 0 else 1.0)
        return replace(tree, values=reach)

    def learn(self, tree: TokenTree, tokens: Sequence[int]) -> None:
        """``tree`` has the drafters' own values; ``tokens`` came after its anchor."""
        sure = _conditional(tree)
        for counts in (self._hits, self._tries):
            for key in counts:
                counts[key] *= _KEEPS
        parent = -1
        for token in tokens:
            below = tree.children.get(parent, {})
            for own, node in below.items():
                key = (int(tree.sources[node]), int(sure[node] * _BINS))
                self._tries[key] = self._tries.get(key, 0.0) + 1.0
                self._hits[key] = self._hits.get(key, 0.0) + (own == token)
            if token not in below:
                return
            parent = below[token]


def _conditional(tree: TokenTree) -> list[float]:
    """Each node's own estimate, given that its parent is right."""
    above = np.append(tree.values, 1.0)[tree.parents]  # the anchor is parent -1
    return [float(min(1.0, max(0.0, v))) for v in tree.values / np.maximum(above, _TINY)]


class RowCosts:
    """Seconds of a pass by its count of rows, learned from every pass."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def add(self, rows: int, seconds: float) -> None:
        bucket = _bucket(rows)
        known = self._seconds.get(bucket)
        if known is None:
            self._seconds[bucket] = seconds
            return
        weight = _NEW if seconds < _ODD * known else _NEW / 10
        self._seconds[bucket] = known + weight * (seconds - known)

    def knows(self, rows: int) -> bool:
        return _bucket(rows) in self._seconds

    def seconds(self, rows: int) -> float:
        """The expected cost: measured, or on the line between the measured counts below and above.

        Beyond the largest, rows cost what they cost up to there, and at least what rows cost before any was measured.
        """
        bucket = _bucket(rows)
        known = sorted(self._seconds)
        if not known:
            return 1.0 + _SLOPE * (bucket - 1)
        if bucket in self._seconds or len(known) > 1 and known[0] < bucket < known[-1]:
            return float(np.interp(bucket, known, [self._seconds[count] for count in known]))
        first, last = known[0], known[-1]
        slope = _SLOPE * self._seconds[first]
        if last > first:
            slope = max(slope, (self._seconds[last] - self._seconds[first]) / (last - first))
        if bucket > last:
            return self._seconds[last] + slope * (bucket - last)
        return self._seconds[first] / (1.0 + _SLOPE * (first - bucket))

    def best(self, reach: NDArray[np.float64]) -> int:
        """How many nodes of falling ``reach`` give the most tokens a second: argmax of (1 + their sum) / seconds."""
        gains = 1.0 + np.concatenate(([0.0], np.cumsum(reach)))
        costs = np.asarray([self.seconds(1 + count) for count in range(len(gains))])
        return int(np.argmax(gains / costs))


def _bucket(rows: int) -> int:
    """The smallest kept count that holds ``rows``."""
    return _BUCKETS[min(bisect_left(_BUCKETS, rows), len(_BUCKETS) - 1)]
