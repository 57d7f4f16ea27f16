"""What a pass takes by its rows and by the tokens before them: learned from every pass, for all requests of a model.

Owns what is expected of rows that were not measured, too. Knows counts and seconds only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from threading import Lock

import numpy as np
from numpy.typing import NDArray

_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # row counts whose cost is kept apart
_SLOPE = 0.02  # what a row is taken to add to the cost of one, until it was measured
_BESIDE = 0.005  # of that, what is not its products
_FALLS = 1 / 3  # of what the latest row cost, what the next is taken to: costs fall where they do not stay the same
_NEW, _FIRST = 0.25, 0.5  # weight of a new measurement, and of the first in a request
_ODD = 3.0  # a pass this many times slower than expected was disturbed, and counts for little
_REMEMBERED = 0.95  # of what rows were measured to cost beyond the guess, from one request to the next

_ONE = np.asarray([1])  # row

Curve = dict[int, float]
"""Seconds by bucket of rows."""


class RowCosts:
    """Seconds of a pass by its count of rows, apart for every power of two of context.

    A context that was not measured yet costs what the nearest does that was. Its first pass says how much more or less:
    all that is known there is taken over in that proportion. Not ``alone``: passes are shared with other requests, and
    a row costs what it adds to theirs, which products of a pass of its own do not tell.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self._alone = alone
        self._curves: dict[int, Curve] = {}  # by bucket of context
        self._measured: dict[tuple[int, int], bool] = {}  # buckets of context and rows; whether in the latest request
        self._tried: Mapping[int, float] = {}  # seconds of the products of a pass by its rows
        self._products: Curve = {}  # what more rows than one add to them, in passes of one row
        self._changing = Lock()  # requests of several threads share the costs of a model

    def expect(self, products: Mapping[int, float]) -> None:
        """The products of a pass were found to take so many seconds by its rows, when nothing else of it was done.

        As long as more rows than one are not measured, they are taken to cost what their products take more, in
        proportion to the first pass that is measured from now on; from request to request a little less, since what
        seems too dear is never measured. Where more rows were measured before, or nothing was found, nothing changes.
        """
        if self._alone and not self._tried:
            self._tried = dict(sorted(products.items()))

    def add(self, rows: int, seconds: float, context: int = 0) -> None:
        """A pass of ``rows`` behind ``context`` tokens took ``seconds``."""
        with self._changing:
            curve, bucket = self._own(rows, seconds, context), _bucket(rows)
            known, here = curve.get(bucket), (context.bit_length(), bucket)
            if known is None or here not in self._measured:
                curve[bucket] = seconds
            else:  # what is remembered may be long ago
                weight = _FIRST if not self._measured[here] else _NEW if seconds < _ODD * known else _NEW / 10
                curve[bucket] = known + weight * (seconds - known)
            self._measured[here] = True

    def renew(self, seconds: float, context: int = 0) -> None:
        """One row takes ``seconds`` now, as a request begins: the machine may have more or less to do than it had.

        What is known of more rows stays in proportion, at any context. Here it is no less than one row from now on, and
        a little nearer to the guess: a cost that keeps drafts from being made is not measured again, and may be wrong.
        """
        with self._changing:
            self._products = {rows: _REMEMBERED * more for rows, more in self._products.items()}
            own = self._own(1, seconds, context)
            # as it was measured: what disturbed a first pass and scaled all that is known goes out again with the next
            ratio = seconds / own.get(1, float(self._read(own, _ONE)[0]))
            for curve in list(self._curves.values()):
                for bucket, known in list(curve.items()):
                    curve[bucket] = ratio * known
            for bucket, known in list(own.items()):
                guess = seconds * float(self._guess(np.asarray([bucket]))[0])
                own[bucket] = max(seconds, guess + _REMEMBERED * (known - guess))
            own[1] = seconds
            self._measured = dict.fromkeys(self._measured, False) | {(context.bit_length(), 1): True}

    @property
    def known(self) -> bool:
        """Whether more is known than what one row takes: by passes, at one context at least, or by their products."""
        return bool(self._tried) or any(len(curve) > 1 for curve in list(self._curves.values()))

    def seconds(self, rows: int, context: int = 0) -> float:
        """The expected cost: measured, or as far from the guess as the measured counts below and above are.

        Beyond the largest, where products were not tried, each costs a third of what the last two counts differed by
        for a row, and at least what was guessed. Two rows may cost twice one where sixteen cost three times as much,
        and a count that seems too dear is never tried; where rows are dear throughout, a third keeps it from climbing.
        """
        return float(self._read(self._nearest(context), np.asarray([_bucket(rows)]))[0])

    def best(self, reach: NDArray[np.float64], context: int = 0, beside: float = 0.0) -> int:
        """How many nodes of falling ``reach`` give the most tokens a second: argmax of (1 + their sum) / seconds.

        To have nodes at all takes ``beside`` seconds: where they do not pay for these too, none are best.
        """
        gains = 1.0 + np.concatenate(([0.0], np.cumsum(reach)))
        buckets = np.asarray([_bucket(1 + count) for count in range(len(gains))])
        took = self._read(self._nearest(context), buckets)
        took[1:] += beside
        return int(np.argmax(gains / took))

    def _nearest(self, context: int) -> Curve:
        """The curve of the context measured nearest to ``context``, the shorter of two; empty where none was."""
        wanted, measured = context.bit_length(), list(self._curves)
        return self._curves[min(measured, key=lambda one: (abs(one - wanted), one))] if measured else {}

    def _own(self, rows: int, seconds: float, context: int) -> Curve:
        """The curve of ``context``; where there was none, the nearest one's, by a pass of ``rows`` in ``seconds``."""
        wanted = context.bit_length()
        self._relate(rows, seconds)
        if wanted not in self._curves:
            near = self._nearest(context)
            ratio = seconds / float(self._read(near, np.asarray([_bucket(rows)]))[0])
            self._curves[wanted] = {bucket: ratio * known for bucket, known in near.items()}
        return self._curves[wanted]

    def _relate(self, rows: int, seconds: float) -> None:
        """Holds the products against a pass of ``rows`` in ``seconds``, unless that was done or more was measured."""
        tried = self._tried
        if not tried or self._products or any(list(curve) != [1] for curve in self._curves.values()):
            return
        more = float(np.interp(rows, list(tried), list(tried.values()))) - tried[1]
        one = max(tried[1], seconds - more)
        # as many rows as passes of one row never cost more than those
        self._products = {count: min(count - 1.0, (took - tried[1]) / one) for count, took in tried.items()}

    def _guess(self, buckets: NDArray[np.int64]) -> NDArray[np.float64]:
        """What so many rows cost as long as nothing was measured, in passes of one row."""
        if not self._products:
            return np.asarray(1.0 + _SLOPE * (buckets - 1))
        more = np.interp(buckets, list(self._products), list(self._products.values()))
        return np.asarray(1.0 + _BESIDE * (buckets - 1) + more)

    def _read(self, curve: Curve, buckets: NDArray[np.int64]) -> NDArray[np.float64]:
        """The cost of so many rows by what was measured, as ``seconds`` says.

        Fewer rows take no longer than more: where they seem to, their pass was disturbed, and more would seem free.
        """
        guess = self._guess(buckets)
        if not curve:
            return guess
        counts = np.asarray(sorted(curve))
        measured, expected = np.asarray([curve[count] for count in counts.tolist()]), self._guess(counts)
        taken = np.minimum.accumulate(measured[::-1])[::-1]
        one = taken[0] / expected[0]
        # what is far from its guess may lie below one row, and what stands beside it then with it
        found = np.maximum(one * guess + np.interp(buckets, counts, taken - one * expected), min(one, taken.min()))
        if self._products or len(counts) == 1:
            return np.asarray(found)
        latest = (taken[-1] - taken[-2]) / (counts[-1] - counts[-2])
        climbing = taken[-1] + _FALLS * latest * (buckets - counts[-1])
        return np.asarray(np.where(buckets > counts[-1], np.maximum(found, climbing), found))


def _bucket(rows: int) -> int:
    """The smallest kept count that holds ``rows``."""
    return _BUCKETS[min(bisect_left(_BUCKETS, rows), len(_BUCKETS) - 1)]
