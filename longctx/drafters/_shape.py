"""The shape of a tree, decided before anything is known of its tokens: which ranks are followed below which.

Owns fixed templates and how often each rank was right. Knows no law and no model.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np

from longctx.drafts import Draft

Ranks = tuple[int, ...]
"""The way from the anchor to a place: which child is taken at every step, 0 the first."""

_DEPTH, _RANKS = 6, 10  # of places: only of these are rates kept
# How often children of the anchor are taken to be right, and those below: of two models' answers to 48 prompts.
_FIRST = (0.28, 0.11, 0.06, 0.05, 0.03, 0.03, 0.02, 0.015, 0.01, 0.01)
_LATER = (0.5, 0.13, 0.07, 0.03, 0.03, 0.02, 0.015, 0.01, 0.01, 0.01)
_TRIES = 12.0  # tries that these count for


def template(levels: Sequence[int], ranks: int) -> tuple[Ranks, ...]:
    """So many places a level, those whose ranks (the first counted as 1) have the smallest product.

    With a rank's chance falling as one over it these are the likeliest of every level, and what stands first the
    likeliest of all: parents before children, the lower ranks of siblings before the others.
    """
    shape: list[Ranks] = []
    above: list[Ranks] = [()]
    for places in levels:
        below = [(*path, rank) for path in above for rank in range(ranks)]
        above = sorted(below, key=lambda path: (_product(path), path))[:places]
        shape += above
    return tuple(sorted(shape, key=lambda path: (_product(path), len(path))))


def _product(path: Ranks) -> int:
    return math.prod(rank + 1 for rank in path)


class Rates:
    """How often the children of each depth and rank were right where their parent was, as a text goes on.

    What was drawn has no say in the shape they give: it follows from rounds that are over.
    """

    def __init__(self) -> None:
        self._hits = _TRIES * np.asarray([_FIRST, *[_LATER] * (_DEPTH - 1)])  # [depth, rank]
        self._tries = np.full((_DEPTH, _RANKS), _TRIES)

    def shape(self, places: int, depth: int) -> list[Ranks]:
        """The ``places`` that are likeliest to be right, none deeper than ``depth``; parents and lower ranks first.

        So far as rates fall with the rank: a place comes behind all of lower rank, whose draws come before its own.
        """
        rates = (self._hits / self._tries).tolist()
        heap: list[tuple[float, Ranks]] = []

        def offer(path: Ranks, above: float) -> None:
            if len(path) <= min(depth, _DEPTH) and path[-1] < _RANKS:
                heapq.heappush(heap, (-above * rates[len(path) - 1][path[-1]], path))

        shape: list[Ranks] = []
        worth: dict[Ranks, float] = {(): 1.0}
        offer((0,), 1.0)
        while heap and len(shape) < places:
            value, path = heapq.heappop(heap)
            shape.append(path)
            worth[path] = -value
            offer((*path[:-1], path[-1] + 1), worth[path[:-1]])
            offer((*path, 0), -value)
        return shape

    def learn(self, draft: Draft, tokens: Sequence[int]) -> None:
        """``tokens`` came after the anchor of ``draft``, whose siblings stand in the order of their ranks.

        Of more siblings than ranks the first are judged.
        """
        below: dict[int, list[int]] = {}
        for node, parent in enumerate(draft.parents.tolist()):
            below.setdefault(parent, []).append(node)
        at = -1
        for depth, token in enumerate(tokens[:_DEPTH]):
            children = below.get(at, [])[:_RANKS]
            right = next((node for node in children if draft.tokens[node] == token), None)
            self._tries[depth, : len(children)] += 1
            if right is None:
                return
            self._hits[depth, children.index(right)] += 1
            at = right
