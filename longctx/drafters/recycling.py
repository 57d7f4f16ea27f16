"""Token Recycling: the runners-up of every prediction are the guess of what follows the same token next time.

A table keeps the likeliest successors that the model named after each token, of accepted and rejected rows alike, and a
tree of fixed shape is read off it (Luo et al. 2024, arXiv 2408.08696). Here the shape is that of the ranks which were
accepted most often so far, and the table begins with what the model said of the end of the prompt.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from longctx.drafts import Budget, Draft, DraftSource, Verified

_RANKS = 8
_PRIOR = (0.40, 0.13, 0.07, 0.05, 0.03, 0.03, 0.02, 0.02)  # how often each rank is right, before anything was seen
_WEIGHT = 20.0  # observations that the prior counts for
_KEEPS = 0.99  # of the counts, per round


@dataclass(frozen=True, slots=True)
class Recycling:
    """``depth`` bounds how far one round guesses ahead."""

    depth: int = 6
    needs: ClassVar[int] = _RANKS

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth={self.depth} must be at least 1")

    def begin(self, source: DraftSource) -> Recycled:
        return Recycled(self, source)


class Recycled:
    """The drafter at work: a row of successors for every token of the vocabulary, -1 where none is known."""

    def __init__(self, options: Recycling, source: DraftSource) -> None:
        self._depth = options.depth
        self._table = np.full((source.vocabulary, _RANKS), -1, dtype=np.int32)
        self._hits = np.asarray(_PRIOR) * _WEIGHT
        self._tries = _WEIGHT
        self._anchor = int(source.prompt[-1])

    def propose(self, budget: Budget) -> Draft:
        """The rank paths most likely to be right, as far as the table knows their tokens."""
        chances = (self._hits / self._tries).tolist()
        depth = min(self._depth, budget.depth)
        heap: list[tuple[float, int, int, int]] = []  # -value, parent, rank, depth
        tokens: list[int] = []
        parents: list[int] = []
        values: list[float] = []

        def offer(token: int, parent: int, value: float, below: int) -> None:
            if 0 <= token < len(self._table) and below <= depth:
                for rank, chance in enumerate(chances):
                    if self._table[token, rank] >= 0:
                        heapq.heappush(heap, (-value * chance, parent, rank, below))

        offer(self._anchor, -1, 1.0, 1)
        while heap and len(tokens) < budget.nodes:
            worth, parent, rank, at = heapq.heappop(heap)
            before = self._anchor if parent < 0 else tokens[parent]
            node = len(tokens)
            tokens.append(int(self._table[before, rank]))
            parents.append(parent)
            values.append(-worth)
            offer(tokens[node], node, -worth, at + 1)
        return Draft(np.asarray(tokens, np.int64), np.asarray(parents, np.int64), np.asarray(values, np.float64))

    def observe(self, verified: Verified) -> None:
        self._anchor = verified.tokens[-1]
        if verified.lead is not None:
            known = (verified.lead.tokens >= 0) & (verified.lead.tokens < len(self._table))
            tops = verified.lead.tops[known, :_RANKS]
            self._table[verified.lead.tokens[known], : tops.shape[1]] = tops  # of one token, the latest stays
        if verified.tops is None:
            return
        self._count(verified)
        ranks = min(_RANKS, verified.tops.shape[1])
        rejected = sorted(set(range(len(verified.rows))) - set(verified.accepted), reverse=True)
        # a token may stand in several rows: the last to be written are those of the text as it is
        for row in (*rejected, *verified.accepted):
            token = int(verified.rows[row])
            if 0 <= token < len(self._table):
                self._table[token, :ranks] = verified.tops[row, :ranks]

    def _count(self, verified: Verified) -> None:
        """Which rank of the table was right after each token of the text, where the table had a row for it."""
        before = [int(verified.rows[row]) for row in verified.accepted]
        for token, after in zip(before, verified.tokens, strict=True):
            if not 0 <= token < len(self._table) or self._table[token, 0] < 0:
                continue
            hit: NDArray[np.bool_] = self._table[token] == after
            self._hits = self._hits * _KEEPS + hit
            self._tries = self._tries * _KEEPS + 1.0


PLUGIN = Recycling
