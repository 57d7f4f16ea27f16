"""What stands for a whole text: the summaries of its segments, out of files or made of their keys.

Owns which heads they are made for and the order of the segments. Knows the probe by its protocol and no formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from longctx.protocols import Calibrated, Inquirer
from longctx.supplies import Stored
from longctx.types import Unit

Heads = tuple[tuple[int, int], ...]


def glancing(probe: Inquirer, calibration: Calibrated | None) -> Heads:
    """The heads that look at summaries: those calibrated for it, else the retrieval heads, else a guess."""
    return probe.middle() if calibration is None else calibration.glancing or calibration.heads


def deepest(heads: Heads) -> int:
    """How many layers of a segment ``heads`` look at."""
    return max(layer for layer, _ in heads) + 1


def lengths(units: Sequence[Unit], segment: tuple[int, int]) -> list[int]:
    """The tokens of each unit of a segment."""
    return [unit.tokens for unit in units[slice(*segment)]]


def overview(
    probe: Inquirer,
    stored: Stored | None,
    units: Sequence[Unit],
    segments: Sequence[tuple[int, int]],
    heads: Heads,
    read: Callable[[Sequence[int], int], Iterator[tuple[int, Any]]],
) -> Any:
    """The summaries of all ``segments`` as one; those that no file holds are made of what ``read`` gives."""
    found = None if stored is None else stored.summaries(heads)
    if found is None:
        everything = range(len(segments))
        made = {
            segment: probe.summarise(kept, lengths(units, segments[segment]), heads)
            for segment, kept in read(everything, deepest(heads))
        }
        found = [made[segment] for segment in everything]
    return probe.overview(found)
