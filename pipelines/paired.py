"""Two systems on the same questions: how sure their difference is.

Owns the paired bootstrap for graded scores and McNemar's exact test for right and wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

_DRAWS = 4000


@dataclass(frozen=True, slots=True)
class Outcome:
    """Questions that only the first or only the second answered right, and the two-sided p-value of their balance."""

    only_first: int
    only_second: int
    p: float


def interval(first: Sequence[float], second: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of ``first - second`` over questions drawn with replacement."""
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    means = _resampled(differences, seed)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def mcnemar(first: Sequence[float], second: Sequence[float]) -> Outcome:
    """The exact test of McNemar (1947): of the questions that one system alone got right, half would be each one's.

    Raises ValueError for a score that is neither 0 nor 1.
    """
    if not {*first, *second} <= {0.0, 1.0}:
        raise ValueError("McNemar's test is for answers that are right (1) or wrong (0).")
    pairs = list(zip(first, second, strict=True))
    mine = sum(a > b for a, b in pairs)
    other = sum(a < b for a, b in pairs)
    tail = sum(comb(mine + other, k) for k in range(min(mine, other) + 1)) / 2 ** (mine + other)
    return Outcome(mine, other, min(1.0, 2 * tail))


def _resampled(differences: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means of ``_DRAWS`` resamples, [draws]."""
    rng = np.random.default_rng(seed)
    picked = rng.integers(0, len(differences), (_DRAWS, len(differences)))
    means: NDArray[np.float64] = differences[picked].mean(1)
    return means
