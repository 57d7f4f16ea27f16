"""What a loaded document has at hand without working it out again: embeddings, keys and values, where copies stand.

Owns nothing but what is behind one door; a compiled document knows no more of its artifact than this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longctx.store import copies
from longctx.store.artifact import Artifact
from longctx.store.files import Entry
from longctx.store.segments import SegmentFiles

Summaries = Callable[[Sequence[tuple[int, int]]], Sequence[Any] | None]
"""The summary of every segment where such heads look, or None."""


class Shelf:
    """The artifact of a document, and its segments where it has any."""

    def __init__(self, artifact: Artifact, segments: SegmentFiles | None, summaries: Summaries) -> None:
        self.artifact, self.segments, self.summaries = artifact, segments, summaries

    @property
    def exact(self) -> bool:
        """Whether its keys and values are those the model computed, to the bit."""
        return self.segments is None or self.segments.held.form == "exact"

    def vectors(self, encoder: str) -> NDArray[np.float32] | None:
        """The embeddings of all units by the encoder of that fingerprint, [units, dim], or None."""
        return self.artifact.vectors(encoder)

    def get(self, segment: int) -> Any:
        """Keys and values of ``segment``, or None."""
        return None if self.segments is None else self.segments.get(segment)

    def resident(self) -> Iterator[tuple[int, Any]]:
        """The segments that belong into memory, copied out of their files."""
        if self.segments is not None and self.segments.held.residency == "ram":
            for segment in range(len(self.segments.held.segments)):
                if (kept := self.segments.get(segment, mapped=False)) is not None:
                    yield segment, kept

    def order(self, text: NDArray[np.int32], longest: int) -> NDArray[np.int32] | None:
        """The suffix array of the ids ``text`` by their first ``longest``, both [tokens], or None."""
        return copies.load(self.artifact, text, longest)

    def share(self, segment: int, key: str, take: Callable[[Path, Entry], bool]) -> Entry | None:
        """The file of ``segment`` or its summary that ``key`` is of, if ``take`` could have it for another artifact."""
        held = self.artifact.manifest
        for stored in (held.kv, held.summaries):
            if stored is not None and stored.segments[segment].key == key:
                entry = stored.segments[segment].file
                return entry if take(self.artifact.folder, entry) else None
        return None

    def take_warnings(self) -> tuple[str, ...]:
        """What every result says, and warnings that none has carried yet."""
        return self.artifact.take_warnings()
