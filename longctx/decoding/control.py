"""What the loop asks of a controller, and what controllers share: calibrated acceptance.

Knows counts and values; no drafter and no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from longctx.decoding.costs import RowCosts
from longctx.decoding.tree import TokenTree
from longctx.drafts import Budget

_BINS = 10  # of the drafters' own estimate
_PRIOR = 6.0  # tries that a drafter's own estimate counts for where none was judged
_KEEPS = 0.98  # of the counts, per round: what was long ago matters less
_TINY = 1e-300


class Control(Protocol):
    """A controller at work on one request."""

    def untimed(self, context: int) -> Sequence[int]:
        """Counts of rows that it would have timed behind ``context`` tokens before it plans at all.

        Where passes for that are made, ``feedback`` is told of each as of a round that committed nothing.
        """
        ...

    def expect(self, products: Mapping[int, float]) -> None:
        """The products of a pass take so many seconds by its rows; told once, before any feedback, as far as known."""
        ...

    def plan(self, depth: int, context: int) -> Budget | None:
        """How much may be drafted in the next round, behind ``context`` tokens, whose paths may be ``depth`` long;
        None: nothing."""
        ...

    def cut(self, tree: TokenTree, seconds: float) -> TokenTree:
        """The part of what was drafted, in ``seconds``, that is worth its rows."""
        ...

    def feedback(self, tokens: Sequence[int], rows: int, seconds: float, context: int) -> None:
        """What a round of ``rows`` behind ``context`` tokens committed, and how long its pass took."""
        ...


class Controller(Protocol):
    """A method of deciding. Frozen: all options are fields."""

    def begin(self, costs: RowCosts | None = None) -> Control:
        """``costs`` are those of passes of the model, for all of its requests; None: this one's are like no other's."""
        ...


class Acceptance:
    """How often nodes were right, by who proposed them and how sure they were; corrects the drafters' estimates.

    A node is judged when its parent was right, whether it was verified or not: what came out says what was right. An
    estimate counts for less the more of its kind were judged: where rows cost nearly nothing, what is left of it would
    have them filled by a drafter that is never right. It counts for less, too, the unlikelier it makes what came: by
    exp(hits - expected hits) where fewer were right than it said, about the chance of that if it were true.
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
            tries, hits = self._tries.get(key, 0.0), self._hits.get(key, 0.0)
            counts = _PRIOR / (1.0 + tries / _PRIOR) * math.exp(min(0.0, hits - sure * tries))
            chance = (hits + counts * sure) / (tries + counts)
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
