"""Two systems on the same questions: how sure their difference is.

Owns the paired bootstrap for graded scores, over questions or whole documents, and McNemar's exact test for right and
wrong.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

_DRAWS = 4000
_ENOUGH = 5  # documents that are drawn as wholes: fewer would tell next to nothing of how documents differ


@dataclass(frozen=True, slots=True)
class Outcome:
    """Questions that only the first or only the second answered right, and the two-sided p-value of their balance."""

    only_first: int
    only_second: int
    p: float


def by_document(documents: Sequence[Hashable]) -> bool:
    """Whether ``interval`` draws whole documents: where there are enough, and some have several questions."""
    return _ENOUGH <= len(set(documents)) < len(documents)


def interval(
    first: Sequence[float], second: Sequence[float], seed: int = 0, documents: Sequence[Hashable] = ()
) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of ``first - second`` over questions drawn with replacement.

    ``documents`` has that of each question. Questions about one document are not independent of one another, so that
    documents are drawn with all their questions, where ``by_document`` says so.
    """
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if len(documents) not in (0, len(differences)):
        raise ValueError(f"{len(documents)} documents of {len(differences)} questions.")
    numbers = {document: number for number, document in enumerate(dict.fromkeys(documents))}
    groups = [numbers[document] for document in documents] if by_document(documents) else range(len(differences))
    sums, counts = np.bincount(groups, differences), np.bincount(groups)
    picked = np.random.default_rng(seed).integers(0, len(sums), (_DRAWS, len(sums)))
    low, high = np.percentile(sums[picked].sum(1) / counts[picked].sum(1), [2.5, 97.5])
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
