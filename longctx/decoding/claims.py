"""How often the claims of drafters come true: calibrated acceptance, and what is handed on of claims that never do.

Knows counts and values; no drafter, no model and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from longctx.decoding.tree import TokenTree

_BINS = 10  # of the drafters' own estimate
_PRIOR = 6.0  # tries that a drafter's own estimate counts for where none was judged
_KEEPS = 0.98  # of the counts, per round: what was long ago matters less
_REFUTED = 3.0  # expected hits, of which next to none came
_SELDOM = 0.1  # of the expected hits: next to none
_DOUBTED = 4.0  # tries without a hit that a refuted claim begins with in a later request
_TINY = 1e-300

Claim = tuple[int, int]
"""Who proposes, by its bits, and the bin of what it claims."""


class Refuted:
    """Claims about the very next token that next to never came true, for all requests of a model with such drafters.

    Only about that one: it is judged in every round that is drafted for, verified or not, so that a claim which comes
    true again is noticed.
    """

    def __init__(self) -> None:
        self._claims: set[Claim] = set()

    def doubts(self) -> dict[Claim, float]:
        """The tries without a hit that claims begin a request with."""
        return dict.fromkeys(self._claims.copy(), _DOUBTED)  # requests of several threads share them

    def judge(self, claim: Claim, right: bool, hits: float, expected: float) -> None:
        """``claim`` was judged once more in a request in which it came true ``hits`` times, where ``expected`` were."""
        if expected > _REFUTED and hits < _SELDOM * expected:
            self._claims.add(claim)
        elif right:
            self._claims.discard(claim)

    def __len__(self) -> int:
        return len(self._claims)


class Acceptance:
    """How often nodes were right, by who proposed them and how sure they were; corrects the drafters' estimates.

    A node is judged when its parent was right, whether it was verified or not: what came out says what was right. An
    estimate counts for less the more of its kind were judged: where rows cost nearly nothing, what is left of it would
    have them filled by a drafter that is never right. It counts for less, too, the unlikelier it makes what came: by
    exp(hits - expected hits) where fewer were right than it said, about the chance of that if it were true.

    A claim about the next token that an earlier request ``refuted`` begins with some tries in which it was wrong, up to
    its first hit: to find that out again would cost each request a few rows that win nothing.
    """

    def __init__(self, refuted: Refuted | None = None) -> None:
        self._refuted = Refuted() if refuted is None else refuted
        self._doubts = self._refuted.doubts()
        self._hits: dict[Claim, float] = {}
        self._tries: dict[Claim, float] = {}
        self._expected: dict[Claim, float] = {}  # hits, if every estimate were right

    def reach(self, tree: TokenTree) -> TokenTree:
        """The tree with calibrated values: the chance that a node and all above it are right."""
        reach = np.zeros(len(tree))
        for node, (parent, source, sure) in enumerate(
            zip(tree.parents.tolist(), tree.sources.tolist(), _conditional(tree), strict=True)
        ):
            claim = _claim(source, sure)
            doubts = self._doubts.get(claim, 0.0) if parent < 0 else 0.0
            hits, tries = self._hits.get(claim, 0.0), self._tries.get(claim, 0.0) + doubts
            expected = self._expected.get(claim, 0.0) + doubts * sure
            counts = _PRIOR / (1.0 + tries / _PRIOR) * math.exp(min(0.0, hits - expected))
            chance = (hits + counts * sure) / (tries + counts)
            reach[node] = min(1.0, chance) * (reach[parent] if parent >= 0 else 1.0)
        return replace(tree, values=reach)

    def learn(self, tree: TokenTree, tokens: Sequence[int]) -> bool:
        """``tree`` has the drafters' own values; ``tokens`` came after its anchor. Whether that ended a doubt."""
        sure = _conditional(tree)
        for counts in (self._hits, self._tries, self._expected, self._doubts):
            for claim in counts:
                counts[claim] *= _KEEPS
        parent, ended = -1, False
        for token in tokens:
            below = tree.children.get(parent, {})
            for own, node in below.items():
                claim, right = _claim(int(tree.sources[node]), sure[node]), own == token
                self._tries[claim] = self._tries.get(claim, 0.0) + 1.0
                self._hits[claim] = self._hits.get(claim, 0.0) + right
                self._expected[claim] = self._expected.get(claim, 0.0) + sure[node]
                if parent < 0:
                    self._refuted.judge(claim, right, self._hits[claim], self._expected[claim])
                    ended = (right and self._doubts.pop(claim, None) is not None) or ended
            if token not in below:
                break
            parent = below[token]
        return ended


def _claim(source: int, sure: float) -> Claim:
    return source, int(sure * _BINS)


def _conditional(tree: TokenTree) -> list[float]:
    """Each node's own estimate, given that its parent is right."""
    above = np.append(tree.values, 1.0)[tree.parents]  # the anchor is parent -1
    return [float(min(1.0, max(0.0, v))) for v in tree.values / np.maximum(above, _TINY)]
