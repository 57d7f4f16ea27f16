"""Where the latest tokens stood before: the longest ends of a context that occur in a text, and their places.

Owns the index of a text that does not change (a suffix array of the reversed text) and the search in one that grows.
Knows tokens only.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

LONGEST = 64  # tokens up to which matches are told apart
_LATEST = 512  # places of a growing text that are looked at: a text that repeats one token has them all

Orders = Callable[[NDArray[np.int32], int], NDArray[np.int32] | None]
"""The suffix array of that very text by so many tokens, as ``SuffixIndex.order`` gives it, or None: not at hand."""


class SuffixIndex:
    """A text of n tokens in 12 bytes a token.

    Holds the suffix array of the reversed text (Manber and Myers 1993): read backwards, the end of a context is the
    beginning of such suffixes, so that all places of an end stand together and those of a longer end within them.
    Suffixes are ordered by their first LONGEST tokens; equal ones by place, the last of the text first. ``orders`` is
    asked for the array before it is made.
    """

    def __init__(
        self, tokens: Sequence[int] | NDArray[np.integer], orders: Orders = lambda text, longest: None
    ) -> None:
        self._orders = orders
        self.tokens = np.ascontiguousarray(tokens, dtype=np.int32)
        self._reversed = self.tokens[::-1].copy()
        self._backwards = self._reversed.data  # reading one number of a memoryview is quickest
        self._folded: tuple[NDArray[np.int32], SuffixIndex] | None = None

    @cached_property
    def _order(self) -> memoryview:
        """Found or made when a place is first asked for, once for all who share the index."""
        found = self._orders(self.tokens, LONGEST)
        return (_suffix_array(self.tokens[::-1], LONGEST) if found is None else found).data

    @property
    def order(self) -> NDArray[np.int32]:
        """The suffix array by LONGEST tokens, [tokens]: places of the reversed text."""
        return np.asarray(self._order)

    def __len__(self) -> int:
        return len(self.tokens)

    def folded(self, folds: NDArray[np.int32]) -> SuffixIndex:
        """The index of the same text with ``fold`` of its tokens; made once for all who share the index."""
        found = self._folded  # looked at once: another thread may put there what other folds give
        if found is None or found[0] is not folds:
            found = self._folded = folds, SuffixIndex(fold(folds, self.tokens), self._orders)
        return found[1]

    def matches(self, context: Sequence[int], most: int) -> list[tuple[int, int]]:
        """Up to ``most`` places as (place, length), longest first: the ``length`` tokens before ``place`` are the last
        of ``context``, at most LONGEST of them, and the token at ``place`` follows.

        Where an end has more places than are left to give, they are taken evenly from all of them.
        """
        found: dict[int, int] = {}
        order, size = self._order, len(self)
        for low, high, length in reversed(self._ranges(context)):
            looked = range(low, high) if high - low <= 4 * most else _evenly(low, high, 4 * most)
            places = [size - order[slot] for slot in looked]
            fresh = [place for place in places if place < size and place not in found]
            room = most - len(found)
            chosen = fresh if len(fresh) <= room else [fresh[at] for at in _evenly(0, len(fresh), room)]
            found.update(dict.fromkeys(chosen, length))
            if len(found) == most:
                break
        return list(found.items())

    def _ranges(self, context: Sequence[int]) -> list[tuple[int, int, int]]:
        """Where the places of ever longer ends of ``context`` stand in the suffix array, and the length of each end.

        Of ends with the same places the longest; none has no places.
        """
        order, text, size = self._order, self._backwards, len(self)
        end = np.asarray(context[-LONGEST:], dtype=np.int64)[::-1]
        ranges: list[tuple[int, int, int]] = []
        low, high, depth = 0, size, 0
        while depth < len(end) and size:
            token = int(end[depth])

            def at(slot: int, depth: int = depth) -> int:
                place = order[slot] + depth
                return text[place] if place < size else -1  # the shorter of two suffixes stands first

            low = bisect_left(range(size), token, low, high, key=at)
            high = bisect_right(range(size), token, low, high, key=at)
            if low == high or token < 0:  # no id: what stands behind the end of a text counts as one
                break
            # suffixes are in order: all share what the first and the last do
            depth += min(self._shared(order[slot], end, depth) for slot in {low, high - 1})
            ranges.append((low, high, depth))
        return ranges

    def _shared(self, place: int, end: NDArray[np.int64], depth: int) -> int:
        """How many tokens of ``end`` from ``depth`` on stand at ``depth`` behind ``place`` of the reversed text."""
        tokens = self._reversed[place + depth : place + len(end)]
        differ = tokens != end[depth : depth + len(tokens)]
        first = int(differ.argmax())
        return first if differ[first] else len(tokens)


def fold(folds: NDArray[np.int32], tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """``folds[token]`` for every token; those beyond ``folds`` stay what they are."""
    known = (tokens >= 0) & (tokens < len(folds))
    return np.where(known, folds[np.where(known, tokens, 0)], tokens) if len(folds) else tokens


def _evenly(low: int, high: int, count: int) -> list[int]:
    """``count`` numbers of [low, high), spread over all of it."""
    return [low + at * (high - low) // count for at in range(count)]


def recent_matches(tokens: NDArray[np.int32], most: int) -> list[tuple[int, int]]:
    """The same as ``SuffixIndex.matches`` for the end of ``tokens`` within ``tokens``, the latest places first.

    Compares with the latest places: for texts of thousands of tokens that is quicker than keeping an index of them.
    """
    if len(tokens) < 2:
        return []
    # the places after the occurrences of the last token
    places = np.flatnonzero(tokens[:-1] == tokens[-1])[: -_LATEST - 1 : -1] + 1
    lengths = np.ones(len(places), dtype=np.int64)
    alive = np.arange(len(places))
    for length in range(1, min(LONGEST, len(tokens) - 1)):
        before = places[alive] - 1 - length
        alive = alive[(before >= 0) & (tokens[before] == tokens[-1 - length])]
        if not len(alive):
            break
        lengths[alive] += 1
    chosen = np.argsort(-lengths, kind="stable")[:most]
    return list(zip(places[chosen].tolist(), lengths[chosen].tolist(), strict=True))


def _suffix_array(text: NDArray[np.int32], longest: int) -> NDArray[np.int32]:
    """The places of ``text`` ordered by the ``longest`` tokens that begin there, by doubling the compared length."""
    size = len(text)
    order = np.argsort(text, kind="stable")
    rank = _ranks(text, order)
    compared = 1
    while compared < longest and size and rank[order[-1]] < size - 1:
        key = rank * (size + 1)
        key[:-compared] += rank[compared:] + 1
        order = np.argsort(key, kind="stable")
        rank = _ranks(key, order)
        compared *= 2
    return order.astype(np.int32)


def _ranks(key: NDArray[np.integer], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rank of every place, equal for equal keys."""
    sorted_key = key[order]
    rank = np.empty(len(key), dtype=np.int64)
    rank[order] = np.concatenate(([0], np.cumsum(sorted_key[1:] != sorted_key[:-1]))) if len(key) else 0
    return rank
