"""Stochastic n-gram drafting (STAND): what the model predicted after the same few tokens before, as a law.

For the last four, three or two tokens a table holds the running mean of the model's predictions after them, cut to the
likeliest (Song et al. 2025, arXiv 2506.04708). Rejected rows teach as much as accepted ones. Proposes the likeliest
tree, or, with ``drawn``, children drawn from the laws without replacement, which the residual rule can use.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from longctx.drafters._history import History
from longctx.drafts import Budget, Draft, DraftSource, Draw, Verified

_KEPT = 10  # tokens of a law
_ORDERS = (4, 3, 2, 1)
_SHRINK = 0.8  # a law is trusted less the shorter its context, and less than the model itself
_BRANCHES = (3, 2)  # drawn children of the anchor and of its children; one below
_ENTRIES = 200_000

Law = dict[int, float]


@dataclass(frozen=True, slots=True)
class Ngram:
    """``drawn`` draws children instead of proposing the likeliest; ``seed`` is that of the draws."""

    drawn: bool = False
    seed: int = 0
    needs: ClassVar[int] = _KEPT

    def begin(self, source: DraftSource) -> Laws:
        return Laws(self, source)


class Laws:
    """The drafter at work: laws by their context, and how often each context was seen."""

    def __init__(self, options: Ngram, source: DraftSource) -> None:
        self._options = options
        self._history = History(source.prompt[-max(_ORDERS) :])
        self._laws: dict[tuple[int, ...], Law] = {}
        self._seen: dict[tuple[int, ...], int] = {}
        self._rounds = 0

    def propose(self, budget: Budget) -> Draft:
        return self._drawn(budget) if self._options.drawn else self._likeliest(budget)

    def law(self, context: Sequence[int]) -> tuple[Law, float]:
        """The law after the longest known end of ``context``, and how far it is trusted."""
        for order in _ORDERS:
            known = self._laws.get(tuple(context[-order:])) if len(context) >= order else None
            if known:
                return known, _SHRINK ** (1 + max(_ORDERS) - order)
        return {}, 0.0

    def observe(self, verified: Verified) -> None:
        if verified.tops is not None and verified.chances is not None:
            past = self._history.tokens[-max(_ORDERS) :].tolist()
            paths: list[list[int]] = []  # the anchor is the last of the past
            for row, parent in enumerate(verified.parents.tolist()):
                paths.append([*paths[parent], int(verified.rows[row])] if parent >= 0 else past)
                self._learn(paths[row], verified.tops[row], verified.chances[row])
        self._history.append(verified.tokens)
        self._rounds += 1

    def _learn(self, context: Sequence[int], tops: NDArray[np.int64], chances: NDArray[np.float32]) -> None:
        new = dict(zip(tops[:_KEPT].tolist(), chances[:_KEPT].tolist(), strict=True))
        for order in _ORDERS:
            key = tuple(context[-order:])
            if len(key) < order:
                continue
            count = self._seen.get(key, 0)
            self._seen[key] = count + 1
            old = self._laws.get(key, {})
            mean = {t: (count * old.get(t, 0.0) + new.get(t, 0.0)) / (count + 1) for t in {**old, **new}}
            self._laws[key] = dict(sorted(mean.items(), key=lambda item: -item[1])[:_KEPT])
        while len(self._laws) > _ENTRIES:  # the context that was learned first goes first
            oldest = next(iter(self._laws))
            del self._laws[oldest], self._seen[oldest]

    def _likeliest(self, budget: Budget) -> Draft:
        """Nodes by the product of their laws, the likeliest first."""
        past = self._history.tokens[-max(_ORDERS) :].tolist()
        heap: list[tuple[float, int, int, int, list[int]]] = []  # -value, tie, parent, token, context
        tokens: list[int] = []
        parents: list[int] = []
        values: list[float] = []
        ties = 0

        def offer(parent: int, context: list[int], value: float) -> None:
            nonlocal ties
            law, trust = self.law(context)
            for token, chance in law.items():
                ties += 1
                heapq.heappush(heap, (-value * chance * trust, ties, parent, token, context))

        offer(-1, past, 1.0)
        while heap and len(tokens) < budget.nodes:
            worth, _, parent, token, context = heapq.heappop(heap)
            node = len(tokens)
            tokens.append(token)
            parents.append(parent)
            values.append(-worth)
            if len(context) - len(past) + 1 < budget.depth:
                offer(node, [*context, token], -worth)
        return Draft(np.asarray(tokens, np.int64), np.asarray(parents, np.int64), np.asarray(values, np.float64))

    def _drawn(self, budget: Budget) -> Draft:
        """A tree of fixed branching: what is drawn decides nothing about where more is drawn, besides its own laws."""
        rng = np.random.default_rng([self._options.seed, self._rounds])
        tokens: list[int] = []
        parents: list[int] = []
        values: list[float] = []
        draws: list[Draw] = []
        level: list[tuple[int, list[int], float]] = [(-1, self._history.tokens[-max(_ORDERS) :].tolist(), 1.0)]
        widest = 1
        for depth in range(budget.depth):
            branches = _BRANCHES[depth] if depth < len(_BRANCHES) else 1
            widest *= branches
            if len(tokens) + widest > budget.nodes or not level:
                break
            below = []
            for parent, context, value in level:
                law, trust = self.law(context)
                for token, draw_ids, chances in _without_replacement(law, branches, rng):
                    draws.append(Draw(len(tokens), draw_ids, chances))
                    worth = value * trust * law[token]
                    below.append((len(tokens), [*context, token], worth))
                    tokens.append(token)
                    parents.append(parent)
                    values.append(worth)
            level = below
        return Draft(
            np.asarray(tokens, np.int64),
            np.asarray(parents, np.int64),
            np.asarray(values, np.float64),
            tuple(draws),
        )


def _without_replacement(
    law: Law, count: int, rng: np.random.Generator
) -> list[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
    """Up to ``count`` tokens drawn one after another, each with the law it was drawn from."""
    ids = np.fromiter(law.keys(), dtype=np.int64, count=len(law))
    weights = np.fromiter(law.values(), dtype=np.float64, count=len(law))
    ids, weights = ids[weights > 0], weights[weights > 0]
    drawn = []
    for _ in range(min(count, len(ids))):
        chances = weights / weights.sum()
        at = int(rng.choice(len(ids), p=chances))
        drawn.append((int(ids[at]), ids.copy(), chances))
        ids, weights = np.delete(ids, at), np.delete(weights, at)
    return drawn


PLUGIN = Ngram
