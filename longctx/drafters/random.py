"""Random tokens: next to never right, and sure of it. What a controller loses to such a drafter is measured with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longctx.drafts import Budget, Draft, DraftSource, Verified


@dataclass(frozen=True, slots=True)
class Random:
    """``tokens`` are drawn from the whole vocabulary, each said to be right with the chance ``sure`` behind the last.

    The same ``seed`` draws the same tokens for a request.
    """

    tokens: int = 8
    sure: float = 0.7
    seed: int = 0
    needs: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens={self.tokens} must be at least 1")
        if not 0 < self.sure <= 1:
            raise ValueError(f"sure={self.sure} must lie in (0, 1]")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")

    def begin(self, source: DraftSource) -> Drawn:
        return Drawn(self, source)


class Drawn:
    """The drafter at work: it knows how long the text is and nothing of what it says."""

    def __init__(self, options: Random, source: DraftSource) -> None:
        self._options, self._vocabulary, self._seed = options, source.vocabulary, source.seed
        self._length = len(source.prompt)

    def propose(self, budget: Budget) -> Draft:
        # a stream of its own: a rule of acceptance takes its numbers of the same seed and position
        entropy = np.random.SeedSequence([self._options.seed, self._seed, self._length], spawn_key=(2,))
        count = min(self._options.tokens, budget.depth, budget.nodes)
        drawn = np.random.default_rng(entropy).integers(self._vocabulary, size=count)
        return Draft.chain(drawn.tolist(), (self._options.sure ** np.arange(1, count + 1)).tolist())

    def observe(self, verified: Verified) -> None:
        self._length += len(verified.tokens)


PLUGIN = Random
