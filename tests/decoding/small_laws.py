"""Laws of a vocabulary of five tokens and drafts that were drawn from them, for the tests of acceptance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longctx.drafts import Draft, Draw

VOCAB = 5
Law = NDArray[np.float64]


def law(rng: np.random.Generator) -> Law:
    weights = rng.exponential(size=VOCAB) ** 2
    return np.asarray(weights / weights.sum())


def siblings(tokens: Sequence[int], laws: Sequence[Law], points: Sequence[int] = ()) -> Draft:
    """Children of the anchor: the drawn ones first in the arrays, proposed ones behind."""
    everything = [*tokens, *points]
    ids = np.arange(VOCAB)
    draws = tuple(Draw(node, ids[q > 0], q[q > 0]) for node, q in enumerate(laws))
    count = len(everything)
    return Draft(np.asarray(everything, np.int64), np.full(count, -1), np.linspace(0.9, 0.1, count), draws)
