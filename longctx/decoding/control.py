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
_REFUTED = 3.0  # expected hits of which none came, and next to none in all: a chance of one in twenty
_SELDOM = 0.1  # of the expected hits
_DOUBTED = 4.0  # tries without a hit that a kind begins with that was refuted in an earlier request
_TINY = 1e-300


Claim = tuple[int, int]
"""Who proposes, by its bits, and the bin of what they claim."""

Refuted = set[Claim]
"""The claims that were next to never right, for all requests of a model with the same drafters."""


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

    def begin(self, costs: RowCosts | None = None, refuted: Refuted | None = None) -> Control:
        """``costs`` are those of passes of the model, for all of its requests; None: this one's are like no other's.

        ``refuted`` is what its requests with the same drafters know of these, and is kept up; None: nothing is known.
        """
        ...


class Acceptance:
    """How often nodes were right, by who proposed them and how sure they were; corrects the drafters' estimates.

    A node is judged when its parent was right, whether it was verified or not: what came out says what was right. An
    estimate counts for less the more of its kind were judged: where rows cost nearly nothing, what is left of it would
    have them filled by a drafter that is never right. It counts for less, too, the unlikelier it makes what came: by
    exp(hits - expected hits) where fewer were right than it said, about the chance of that if it were true.

    A claim that an earlier request found to be next to never right begins with some tries in which it was not: to find
    that out again would cost each request a few rows that win nothing. With its first hit, which it may have without
    being verified, it begins anew.
    """

    def __init__(self, refuted: Refuted | None = None) -> None:
        self._refuted: Refuted = set() if refuted is None else refuted
        self._doubted = set(self._refuted)  # no hit of this request has cleared them
        self._hits: dict[Claim, float] = {}
        self._tries = dict.fromkeys(self._doubted, _DOUBTED)

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
                if own == token and key in self._doubted:
                    self._doubted.discard(key)
                    self._tries[key] = self._hits[key] = 0.0
                self._tries[key] = self._tries.get(key, 0.0) + 1.0
                self._hits[key] = self._hits.get(key, 0.0) + (own == token)
                expected = sure[node] * self._tries[key]
                if expected > _REFUTED and self._hits[key] < _SELDOM * expected:
                    self._refuted.add(key)
                else:
                    self._refuted.discard(key)
            if token not in below:
                return
            parent = below[token]


def _conditional(tree: TokenTree) -> list[float]:
    """Each node's own estimate, given that its parent is right."""
    above = np.append(tree.values, 1.0)[tree.parents]  # the anchor is parent -1
    return [float(min(1.0, max(0.0, v))) for v in tree.values / np.maximum(above, _TINY)]
