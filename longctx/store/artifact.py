"""A compiled document opened from its folder: documents at once, embeddings and segments when they are asked for.

Owns what is checked when. Knows manifest, texts and embeddings; what a model is, is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from longctx.errors import ArtifactError, BadOption
from longctx.store import files, manifest, texts, vectors
from longctx.store.files import Entry
from longctx.store.manifest import Manifest
from longctx.types import EncodedDocument, Unit

Verify = Literal["full", "lazy", "off"]
VERIFY: tuple[Verify, ...] = ("full", "lazy", "off")
_TRIES = 5


class Artifact:
    """One version of an artifact. Files are never changed in place, so that a later version does not disturb it."""

    def __init__(self, folder: Path, held: Manifest, verify: Verify) -> None:
        self.folder, self.manifest, self.verify = folder, held, verify
        self.encoded: list[EncodedDocument] = []
        self.units: list[Unit] = []
        self._warnings: list[str] = []
        self._standing: list[str] = []

    @property
    def checks(self) -> bool:
        """Whether content is held against its checksum."""
        return self.verify != "off"

    def content(self, entry: Entry) -> bytes | None:
        """The checked content of a file; None where it is gone."""
        return files.read(self.folder, entry, self.checks)

    def vectors(self, encoder: str) -> NDArray[np.float32] | None:
        """The embeddings of all units, [units, dim]; None where there are none by this very encoder."""
        held = self.manifest.vectors
        if held is None:
            return None
        if held.encoder != encoder:
            self._warnings.append("the stored embeddings are another encoder's: the units are embedded again.")
            return None
        blocks = []
        for entry in held.blocks:
            block = vectors.load(self.folder, entry, self.checks)
            if block is None:
                self._warnings.append(f"{entry.name} is gone from {self.folder}: the units are embedded again.")
                return None
            blocks.append(block[0])
        if sum(map(len, blocks)) != len(self.units) or any(block.shape[1] != held.dimension for block in blocks):
            raise ArtifactError(f"{self.folder}: the embeddings are not those of its {len(self.units)} units.")
        return np.concatenate(blocks)

    def segment_ids(self) -> list[NDArray[np.int32]]:
        """The tokens of each segment."""
        ranges = [(self.units[first], self.units[last - 1]) for first, last in self.manifest.segments]
        return [self.encoded[one.document].token_ids[one.first : other.last] for one, other in ranges]

    def warn(self, text: str, *, stands: bool = False) -> None:
        """Something that was done otherwise than stored, for the next result; for each, where it ``stands``."""
        told = self._standing if stands else self._warnings
        if text not in told:
            told.append(text)

    def take_warnings(self) -> tuple[str, ...]:
        """What every result says, and warnings that none has carried yet."""
        taken, self._warnings = tuple(self._warnings), []
        return (*self._standing, *taken)


def open_artifact(folder: Path, verify: Verify = "lazy") -> Artifact:
    """The artifact in ``folder``, with its documents read and checked.

    ``verify``: ``full`` checks every file now, ``lazy`` each when it is first used, ``off`` only lengths and shapes.
    Raises ArtifactError for what is damaged or is no artifact.
    """
    if verify not in VERIFY:
        raise BadOption(f"verify={verify!r} is not one of {', '.join(VERIFY)}.")
    for _ in range(_TRIES):
        held = manifest.load(folder)
        artifact = Artifact(folder, held, verify)
        if (gone := _read(artifact)) is None:
            return artifact
        if manifest.load(folder) == held:
            raise ArtifactError(f"{folder / gone.name} is missing. Compile the documents again.")
    raise ArtifactError(f"{folder} was replaced {_TRIES} times while it was read. Load it again.")


def damaged(folder: Path, held: Manifest) -> Iterator[tuple[Entry, str]]:
    """Every file that is not what was written, with the reason; each is set aside."""
    for entry in held.entries():
        try:
            if files.read(folder, entry) is None:
                yield entry, "missing"
        except ArtifactError as error:
            yield entry, str(error)


def _read(artifact: Artifact) -> Entry | None:
    """Documents and units into ``artifact``; the first file that is gone, where one is."""
    held = artifact.manifest
    for number, stored in enumerate(held.documents):
        data = artifact.content(stored.file)
        if data is None:
            return stored.file
        try:
            encoded, units = texts.unpack(data, stored, number, len(artifact.units))
        except ValueError as error:
            raise files.malformed(artifact.folder, stored.file, str(error)) from error
        artifact.encoded.append(encoded)
        artifact.units += units
    _check_segments(artifact.folder, held.segments, artifact.units)
    for what, stored_of in (("keys and values", held.kv), ("summaries", held.summaries)):
        if stored_of is not None and len(stored_of.segments) != len(held.segments):
            raise ArtifactError(
                f"{artifact.folder} has {what} of {len(stored_of.segments)} segments and holds "
                f"{len(held.segments)}. Compile it again."
            )
    if artifact.verify == "full":
        return next((entry for entry in held.entries() if artifact.content(entry) is None), None)
    return None


def _check_segments(folder: Path, segments: Sequence[tuple[int, int]], units: Sequence[Unit]) -> None:
    """Segments must tile the units, each within one document."""
    at = 0
    for first, last in segments:
        if first != at or not first < last <= len(units) or units[first].document != units[last - 1].document:
            raise ArtifactError(f"{folder}: its segments do not tile its {len(units)} units. Compile it again.")
        at = last
    if at != len(units) or not units:
        raise ArtifactError(f"{folder}: its segments hold {at} of its {len(units)} units. Compile it again.")
