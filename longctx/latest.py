"""What segments said to the question asked last, for other budgets and other selectors that ask the same.

Owns which inquiry answers which, and the limit of memory. Knows no probe and no selector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from longctx.types import Inquiry, Reading

BYTES = 256 * 2**20  # the next-token laws of some 400 segments, with a vocabulary of 150,000


@dataclass(slots=True)
class _Held:
    """One inquiry's readings and their bytes. Replaced as a whole: threads may ask the same document."""

    inquiry: Inquiry | None
    known: dict[int, Reading]
    used: int


class Latest:
    """The readings of one inquiry at a time, as many as fit into ``limit_bytes``."""

    def __init__(self, limit_bytes: int = BYTES) -> None:
        self._limit, self._held = limit_bytes, _Held(None, {}, 0)

    def of(self, inquiry: Inquiry, segments: Sequence[int]) -> Mapping[int, Reading]:
        """What is known of ``segments``; afterwards other readings of ``inquiry`` can be kept.

        Where a wider inquiry has answered for all of ``segments``, that one stays: more may be asked of it.
        """
        held = self._held
        if held.inquiry == inquiry:
            return held.known
        heads = None if held.inquiry is None else _within(inquiry, held.inquiry)
        known: dict[int, Reading] = {}
        if heads is not None:
            known = {s: _narrowed(held.known[s], inquiry, heads) for s in segments if s in held.known}
            if len(known) == len(set(segments)):
                return known
        self._held = _Held(inquiry, known, sum(map(_size, known.values())))
        return known

    def keep(self, inquiry: Inquiry, segment: int, reading: Reading) -> None:
        """Afterwards ``reading`` is known, if ``inquiry`` is the latest still and there is room."""
        held, size = self._held, _size(reading)
        if inquiry == held.inquiry and segment not in held.known and held.used + size <= self._limit:
            held.known[segment] = reading
            held.used += size


def _within(narrow: Inquiry, wide: Inquiry) -> list[int] | slice | None:
    """Where the heads of ``narrow`` stand among those of ``wide``, if a pass of ``wide`` answers all of ``narrow``.

    Nothing that is read off a token depends on tokens behind it, so the longer inquiry may go on behind the shorter.
    """
    ids = wide.ids if narrow.next_token else wide.ids[: len(narrow.ids)]
    if narrow.ids != ids or narrow.question != wide.question or narrow.keep_rows or wide.keep_rows:
        return None
    if narrow.likelihood > wide.likelihood or narrow.next_token > wide.next_token:
        return None
    if narrow.heads == ():
        return []
    if narrow.rows != wide.rows:
        return None
    if narrow.heads == wide.heads:
        return slice(None)
    if narrow.heads is None or wide.heads is None or not set(narrow.heads) <= set(wide.heads):
        return None
    return [wide.heads.index(head) for head in narrow.heads]


def _narrowed(reading: Reading, inquiry: Inquiry, heads: list[int] | slice) -> Reading:
    """What ``reading`` says to ``inquiry``, whose heads stand there at ``heads``."""
    return replace(
        reading,
        attention=reading.attention[heads],
        likelihood=reading.likelihood if inquiry.likelihood else np.zeros(0, np.float32),
        next_token=reading.next_token if inquiry.next_token else None,
    )


def _size(reading: Reading) -> int:
    arrays = (reading.attention, reading.likelihood, reading.next_token, reading.rows)
    return sum(array.nbytes for array in arrays if array is not None)
