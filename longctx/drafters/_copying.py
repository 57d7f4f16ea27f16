"""From places in texts to a tree: every place votes for the tokens that follow it.

Owns the weights of places and the growth of the tree. Knows no model.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longctx.drafts import Budget, Draft

_HALF = 2.5  # matched tokens at which a copy is as likely to go on as to end


class Place(NamedTuple):  # dozens are made for every draft
    """The ``length`` tokens before ``at`` in ``text`` are the latest tokens; ``text`` may be the document itself.

    ``weight`` is how much it counts beside places of the same length.
    """

    text: NDArray[np.int32]
    at: int
    length: int
    in_document: bool
    weight: float = 1.0


def trust(length: int) -> float:
    """How likely a text goes on as a copy of another with which it shares its last ``length`` tokens."""
    return length / (length + _HALF)


def grow(places: Sequence[Place], budget: Budget) -> Draft:
    """The tree of the ``budget.nodes`` likeliest tokens after ``places``, the likeliest first.

    A place's vote is that of prediction by partial matching: places of the longest match share the trust in it by their
    weights, those of the next longest what is left, and so on.
    """
    votes = _weights(places)
    texts, ats = [place.text for place in places], [place.at for place in places]
    sizes, lengths = [len(text) for text in texts], [place.length for place in places]
    heap: list[tuple[float, int, int, int, list[int], int]] = []  # -value, tie, parent, token, places, depth
    ties = 0

    def offer(parent: int, voters: Sequence[int], value: float, depth: int) -> None:
        nonlocal ties
        below: dict[int, list[int]] = {}
        for voter in voters:
            at = ats[voter] + depth
            if at < sizes[voter]:
                below.setdefault(texts[voter].item(at), []).append(voter)
        total = sum(map(votes.__getitem__, voters))
        for token, own in below.items():
            share = sum(map(votes.__getitem__, own)) / total
            sure = trust(max(map(lengths.__getitem__, own)) + depth) if depth else 1.0
            ties += 1
            heapq.heappush(heap, (-value * share * sure, ties, parent, token, own, depth))

    tokens: list[int] = []
    parents: list[int] = []
    values: list[float] = []
    origins: list[int] = []
    offer(-1, range(len(places)), sum(votes), 0)
    while heap and len(tokens) < budget.nodes:
        worth, _, parent, token, own, depth = heapq.heappop(heap)
        node = len(tokens)
        tokens.append(token)
        parents.append(parent)
        values.append(-worth)
        origins.append(next((places[v].at + depth for v in own if places[v].in_document), -1))
        if depth + 1 < budget.depth:
            offer(node, own, -worth, depth + 1)
    return Draft(
        np.asarray(tokens, dtype=np.int64),
        np.asarray(parents, dtype=np.int64),
        np.asarray(values, dtype=np.float64),
        origins=np.asarray(origins, dtype=np.int64),
    )


def _weights(places: Sequence[Place]) -> list[float]:
    """What each place's vote counts; all together less than 1."""
    weights: dict[int, float] = {}  # of the places of a length
    for place in places:
        weights[place.length] = weights.get(place.length, 0.0) + place.weight
    shares: dict[int, float] = {}  # of a weight of 1 in the trust in so long a match
    whole, left = 0.0, 1.0
    for length in sorted(weights, reverse=True):
        whole += weights[length]
        shares[length] = left * trust(length) / whole
        left *= 1.0 - trust(length)
    votes, vote = dict[int, float](), 0.0
    for length in sorted(shares):
        votes[length] = vote = vote + shares[length]  # a place also has a share in the trust in its shorter ends
    return [place.weight * votes[place.length] for place in places]
