"""Token Recycling: the runners-up of every prediction are the guess of what follows the same token next time.

A table keeps the likeliest successors that the model named after each token, of accepted rows and some rejected ones,
and a tree of fixed shape is read off it (Luo et al. 2024, arXiv 2408.08696). Here the likeliest paths are followed,
whatever their shape, unless that one is asked for, and the table begins with what the model says of single tokens.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from longctx.drafters._shape import template
from longctx.drafts import Budget, Draft, DraftSource, Verified

_RANKS = 16
_LONG = 16  # tokens of an answer: most that are shorter end before asking has paid for itself
_TEMPLATE = template((8, 21, 25, 15, 8, 3), 8)  # the paper's places a level; 72 of its 80 places are these
_KEEPS = 0.5  # of what a row said before, when the model names successors of its token again

Row = tuple[tuple[int, float], ...]
"""Tokens that may follow and how likely each is, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Recycling:
    """``depth`` bounds how far one round guesses ahead. Without ``prior`` the table begins empty. ``growth`` follows
    the likeliest paths, or the paper's fixed template of ranks, of which a smaller budget takes the lowest.

    The prior is asked of the model, for a second of a request until it is whole, and kept in the cache folder. A
    request asks only once its answer is long enough to be worth that: till then it goes by what is known.
    """

    depth: int = 6
    prior: bool = True
    growth: Literal["likeliest", "template"] = "likeliest"
    needs: ClassVar[int] = _RANKS

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth={self.depth} must be at least 1")

    def begin(self, source: DraftSource) -> Recycled:
        return Recycled(self, source)


class Recycled:
    """The drafter at work: a row for every token of which successors are known."""

    def __init__(self, options: Recycling, source: DraftSource) -> None:
        self._depth, self._vocabulary = options.depth, source.vocabulary
        self._fixed = options.growth == "template"
        self._ask = source.successors if options.prior else None
        self._prior = self._ask(False) if self._ask is not None else None
        self._new = 0  # tokens of the answer
        self._rows: dict[int, Row] = {}  # those of this request, and those of the prior that were looked at
        self._anchor = int(source.prompt[-1])

    def propose(self, budget: Budget) -> Draft:
        """Paths that may be right, as far as the table knows their tokens."""
        if self._ask is not None and self._new >= _LONG:
            self._prior, self._ask = self._ask(True), None
        budget = Budget(budget.nodes, min(self._depth, budget.depth))
        return self._by_template(budget) if self._fixed else self._likeliest(budget)

    def _likeliest(self, budget: Budget) -> Draft:
        heap: list[tuple[float, int, int, int, float]] = []  # -value, parent, rank, depth, value of the parent
        tokens: list[int] = []
        parents: list[int] = []
        values: list[float] = []

        def offer(parent: int, rank: int, at: int, above: float) -> None:
            row = self._row(self._anchor if parent < 0 else tokens[parent])
            if rank < len(row) and at <= budget.depth:
                heapq.heappush(heap, (-above * row[rank][1], parent, rank, at, above))

        offer(-1, 0, 1, 1.0)
        while heap and len(tokens) < budget.nodes:
            worth, parent, rank, at, above = heapq.heappop(heap)
            tokens.append(self._row(self._anchor if parent < 0 else tokens[parent])[rank][0])
            parents.append(parent)
            values.append(-worth)
            offer(parent, rank + 1, at, above)  # a row falls: its next is not worth more
            offer(len(tokens) - 1, 0, at + 1, -worth)
        return Draft(np.asarray(tokens, np.int64), np.asarray(parents, np.int64), np.asarray(values, np.float64))

    def _by_template(self, budget: Budget) -> Draft:
        places: dict[tuple[int, ...], int] = {}  # the nodes of those whose tokens are known
        tokens: list[int] = []
        parents: list[int] = []
        values: list[float] = []
        for path in [path for path in _TEMPLATE if len(path) <= budget.depth][: budget.nodes]:
            parent = places.get(path[:-1], -1)
            if parent < 0 and len(path) > 1:
                continue
            row = self._row(self._anchor if parent < 0 else tokens[parent])
            if path[-1] < len(row):
                places[path] = len(tokens)
                tokens.append(row[path[-1]][0])
                parents.append(parent)
                values.append((1.0 if parent < 0 else values[parent]) * row[path[-1]][1])
        return Draft(np.asarray(tokens, np.int64), np.asarray(parents, np.int64), np.asarray(values, np.float64))

    def observe(self, verified: Verified) -> None:
        self._anchor = verified.tokens[-1]
        self._new += len(verified.tokens)
        # a token may stand in several rows: the last to be told are those of the text as it is
        kept = min(len(verified.accepted), len(verified.told))
        for at in (*reversed(range(kept, len(verified.told))), *range(kept)):
            token = int(verified.rows[verified.told[at]])
            self._told(token, verified.tops[at].tolist(), verified.chances[at].tolist())

    def _row(self, token: int) -> Row:
        if token not in self._rows:
            prior = self._prior
            found: Row = ()
            if prior is not None and 0 <= token < len(prior.tokens):
                found = tuple(zip(prior.tokens[token].tolist(), prior.chances[token].tolist(), strict=True))
            if not found:
                return found  # the prior may know it later
            self._rows[token] = found
        return self._rows[token]

    def _told(self, token: int, tops: Sequence[int], chances: Sequence[float]) -> None:
        """The model named ``tops`` with ``chances`` after ``token``; what it named before counts half from now on."""
        if not 0 <= token < self._vocabulary or not all(map(math.isfinite, chances)):
            return  # a row that was not accepted may hold anything
        before = self._row(token)
        weight = 1.0 - _KEEPS if before else 1.0
        chance = {after: _KEEPS * value for after, value in before}
        for after, value in zip(tops, chances, strict=True):
            chance[after] = chance.get(after, 0.0) + weight * value
        self._rows[token] = tuple(sorted(chance.items(), key=lambda one: (-one[1], one[0]))[:_RANKS])


PLUGIN = Recycling
