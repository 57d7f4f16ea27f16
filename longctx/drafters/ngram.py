"""Stochastic n-gram drafting (STAND): what the model predicted after the same few tokens before, as a law.

For the last four, three or two tokens a table holds the running mean of the model's predictions after them, cut to the
likeliest (Song et al. 2025, arXiv 2506.04708). Rejected rows, as far as they are told of, teach as much as accepted
ones. Proposes the likeliest tree, or one whose children are drawn from the laws, which the residual rule can use. The
paper's shape is learned of a few dozen prompts; ``shaped`` begins with such rates and goes on to learn of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from longctx.drafters._growth import Growth, Law, grow
from longctx.drafters._history import History
from longctx.drafters._shape import Rates
from longctx.drafts import Budget, Draft, DraftSource, Verified

_KEPT = 10  # tokens of a law
_ORDERS = (4, 3, 2, 1)
_SHRINK = 0.8  # a law is trusted less the shorter its context, and less than the model itself
_ENTRIES = 200_000


@dataclass(frozen=True, slots=True)
class Ngram:
    """``growth`` is how the tree grows: ``likeliest`` proposes, the others draw; ``seed`` tells apart the draws of two
    drafters of one request. ``shaped`` draws where draws were right before. ``dyspec_threshold`` draws wherever a draw
    counts at least ``least``, the chance that all above it are right and none before it is; 0 stands for one over the
    nodes asked for."""

    growth: Growth = "likeliest"
    seed: int = 0
    least: float = 0.0
    needs: ClassVar[int] = _KEPT

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise ValueError(f"least={self.least} must lie in [0, 1]")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")

    def begin(self, source: DraftSource) -> Laws:
        return Laws(self, source)


class Laws:
    """The drafter at work: laws by their context, and how often each context was seen."""

    def __init__(self, options: Ngram, source: DraftSource) -> None:
        self._options = options
        self._history = History(source.prompt[-max(_ORDERS) :])
        self._laws: dict[tuple[int, ...], Law] = {}
        self._seen: dict[tuple[int, ...], int] = {}
        self._seed, self._length = source.seed, len(source.prompt)
        self._rates, self._drawn = Rates(), Draft.empty()

    def propose(self, budget: Budget) -> Draft:
        # a stream of its own: a rule of acceptance takes its numbers of the same seed and position
        entropy = np.random.SeedSequence([self._options.seed, self._seed, self._length], spawn_key=(1,))
        rng = np.random.default_rng(entropy)
        past = self._history.tokens[-max(_ORDERS) :].tolist()
        shape = self._rates.shape(budget.nodes, budget.depth) if self._options.growth == "shaped" else ()
        self._drawn = grow(self._options.growth, self.law, past, budget, rng, self._options.least, shape)
        return self._drawn

    def law(self, context: Sequence[int]) -> Law:
        """The law after the longest known end of ``context``, its sum smaller the less that end is trusted."""
        for order in _ORDERS:
            known = self._laws.get(tuple(context[-order:])) if len(context) >= order else None
            if known:
                trust = _SHRINK ** (1 + max(_ORDERS) - order)
                return {token: trust * chance for token, chance in known.items()}
        return {}

    def observe(self, verified: Verified) -> None:
        if self._options.growth == "shaped":
            self._rates.learn(self._drawn, verified.tokens)
            self._drawn = Draft.empty()  # a round that is not drafted for judges nothing
        if verified.told:
            past = self._history.tokens[-max(_ORDERS) :].tolist()
            paths: list[list[int]] = []  # the anchor is the last of the past
            for row, parent in enumerate(verified.parents.tolist()):
                paths.append([*paths[parent], int(verified.rows[row])] if parent >= 0 else past)
            for row, tops, chances in zip(verified.told, verified.tops, verified.chances, strict=True):
                self._learn(paths[row], tops, chances)
        self._history.append(verified.tokens)
        self._length += len(verified.tokens)

    def _learn(self, context: Sequence[int], tops: NDArray[np.int64], chances: NDArray[np.float32]) -> None:
        if not np.isfinite(chances).all():
            return  # a row that was not accepted may hold anything
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


PLUGIN = Ngram
