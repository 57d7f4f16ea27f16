"""Attention from the question to the units of a document, by the heads that find facts.

Owns the sum over tokens and heads. Which segments are worth a pass is the selector's business.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longctx.protocols import Corpus
from longctx.types import Reading


def heads_of(corpus: Corpus) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...]]:
    """The calibrated heads, or all heads of one middle layer with a warning that says so."""
    if corpus.calibration is not None:
        return corpus.calibration.heads, ()
    return corpus.probe.middle(), uncalibrated(corpus)


def uncalibrated(corpus: Corpus) -> tuple[str, ...]:
    """The warning that heads were guessed, where they were."""
    if corpus.calibration is not None:
        return ()
    layer = corpus.probe.middle()[0][0]
    return (f"the model is not calibrated: all heads of layer {layer} are used. Run `longctx calibrate`.",)


def per_unit(corpus: Corpus, segment: int, reading: Reading) -> NDArray[np.float32]:
    """Attention summed over each unit's tokens: [heads, units of the segment]."""
    first, last = corpus.segments[segment]
    edges = np.cumsum([0, *(corpus.units[i].tokens for i in range(first, last))])
    totals = np.pad(np.cumsum(reading.attention, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
    return np.asarray(np.diff(totals[:, edges], axis=1), dtype=np.float32)  # a unit without tokens gets nothing


def fuse(mass: NDArray[np.float32]) -> NDArray[np.float32]:
    """One score per unit of ``mass`` [heads, units]: the mean over heads of the unit's share of the head's total.

    Shares make heads of different reach count alike; nothing is divided by the length of a unit, since retrieval heads
    put their mass on few tokens and units are of like size.
    """
    total = mass.sum(1, keepdims=True)
    return np.asarray((mass / np.maximum(total, 1e-12)).mean(0), dtype=np.float32)
