"""What a loaded document has at hand without working it out again: embeddings, and keys and values of segments.

Owns nothing but the two behind one door; a compiled document knows no more of its artifact than this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longctx.store.artifact import Artifact
from longctx.store.files import Entry
from longctx.store.segments import SegmentFiles


class Shelf:
    """The artifact of a document, and its segments where it has any."""

    def __init__(self, artifact: Artifact, segments: SegmentFiles | None) -> None:
        self.artifact, self.segments = artifact, segments

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

    def share(self, segment: int, key: str, take: Callable[[Path, Entry], bool]) -> Entry | None:
        """The file that holds ``segment`` as ``key`` wants it, if ``take`` could have it for another artifact."""
        if self.segments is None or (entry := self.segments.entry(segment, key)) is None:
            return None
        return entry if take(self.artifact.folder, entry) else None

    def take_warnings(self) -> tuple[str, ...]:
        """Warnings that no result has carried yet."""
        return self.artifact.take_warnings()
