"""Scores of units in their context: a share of each neighbour's score is added to a unit's own.

Owns the sum; which share is right is the caller's business.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longctx.types import Unit


def spread(values: NDArray[np.float32], units: Sequence[Unit], share: float) -> NDArray[np.float32]:
    """``values`` plus ``share`` times the values of the units just before and after in the same document."""
    if share == 0.0 or len(values) < 2:
        return values
    same = np.array([a.document == b.document for a, b in zip(units, units[1:], strict=False)])
    out = values.astype(np.float32, copy=True)
    out[1:] += np.where(same, share * values[:-1], 0.0).astype(np.float32)
    out[:-1] += np.where(same, share * values[1:], 0.0).astype(np.float32)
    return out


def standard(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """``values`` with mean 0 and deviation 1; all zero where they do not differ, NaN where one is no number."""
    deviation = float(values.std())
    return np.zeros_like(values) if deviation == 0 else (values - values.mean()) / deviation
