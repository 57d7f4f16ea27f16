"""Saves compiled documents and loads them again for one reader: what is kept, what is shared, what is refused.

Owns the order of the steps and the comparison of what an artifact was made with and what the reader is. Knows no file
format: that is ``store``'s, and the tensors of a segment are ``backend``'s.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from longctx import __version__, filing, summaries
from longctx.backend import segment_kv
from longctx.backend.fingerprints import fingerprints
from longctx.backend.folding import folds
from longctx.backend.footprint import bytes_per_token
from longctx.backend.model import Loaded
from longctx.backend.probe import Probe
from longctx.backend.summaries import Summary
from longctx.backend.tokens import Frame
from longctx.compiled import CompiledDocument
from longctx.console import listener
from longctx.errors import ArtifactError, CacheError, ModelError
from longctx.overview import deepest, glancing, lengths
from longctx.protocols import Progress
from longctx.store import folders, segments, sizes
from longctx.store.artifact import Artifact, Verify, open_artifact
from longctx.store.files import Entry
from longctx.store.manifest import (
    RESIDENCIES,
    Form,
    Manifest,
    Origin,
    Residency,
    SegmentKV,
    StoredSegment,
    Summaries,
    check_words,
)
from longctx.store.segments import SegmentFiles
from longctx.store.shelf import Shelf
from longctx.store.writer import Writer
from longctx.types import Saved

_CANARY = "What does the text say about the letter?"
_TOLERANCE, _HALF_TOLERANCE = 0.02, 0.25  # mean difference of log-probabilities that is rounding: 32 bits, 16 bits


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a text becomes units, and how many tokens of them are read together."""

    splitter: Any
    segment_tokens: int


class Storage:
    """Saves and loads for one model, tokenizer and frame of the prompt."""

    def __init__(
        self,
        loaded: Loaded,
        frame: Frame,
        probe: Callable[[], Probe],
        cutting: Cutting,
        named: Callable[[], str],
    ) -> None:
        self._loaded, self._frame, self._probe = loaded, frame, probe
        self._cutting, self._named = cutting, named
        self._origin: tuple[str, Origin] | None = None

    @property
    def origin(self) -> Origin:
        """What a document compiled now is made with: of the model as it is now, which ``named`` gives a name."""
        name = self._named()
        if self._origin is None or self._origin[0] != name:
            self._origin = name, self._made_with()
        return self._origin[1]

    def _made_with(self) -> Origin:
        found = fingerprints(self._loaded, self._frame)
        versions = tuple(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
        return Origin(
            self._loaded.name,
            str(self._loaded.model.dtype),
            found.model,
            found.tokenizer,
            found.template,
            found.frame,
            repr(self._cutting.splitter),
            self._cutting.segment_tokens,
            (f"longctx {__version__}", *versions, platform.machine()),
        )

    def save(
        self, book: CompiledDocument, path: Path, segment_kv: str, form: Form, progress: bool | Progress | None
    ) -> Saved:
        """``path`` holds ``book`` afterwards, or what it held before. What it held of the same text is taken over."""
        check_words(segment_kv, form)
        check_model(book, self._named())
        writer = Writer(path)
        writer.expected_bytes = self._expected(book, "none", form)
        with folders.fitting(path, lambda: writer.needed_bytes), writer, book.reporting(listener(progress)):
            residency = self._residency(book, path, segment_kv, form)
            writer.expected_bytes = self._expected(book, residency, form)
            documents = filing.documents(writer, book)
            embedded, units_embedded = filing.embeddings(writer, book)
            copies = filing.copies(writer, book, folds(self._loaded.tokenizer))
            before = book.spent()
            kv, summed = self._segments(writer, book, residency, form)
            made = Manifest(self.origin, documents, book.segments, book.warnings, embedded, kv, summed, copies)
            writer.publish(made)
        size = sum(entry.size for entry in made.entries())
        spent = book.spent() - before
        return Saved(str(path), residency, form, size, writer.written_bytes, spent, units_embedded)

    def load(self, path: Path, verify: Verify) -> tuple[Artifact, Shelf]:
        """The artifact at ``path`` and what it has at hand. Raises ArtifactError: it is damaged or another model's."""
        artifact = open_artifact(path, verify)
        self._compare(artifact)
        embeddings: Any = self._loaded.model.get_input_embeddings()
        known = int(embeddings.weight.shape[0])
        if (largest := max(int(encoded.token_ids.max()) for encoded in artifact.encoded)) >= known:
            raise ArtifactError(f"{path} holds token {largest}, and the model knows {known}. Compile it again.")
        kv, files = artifact.manifest.kv, None
        if kv is not None:
            keys, canary = self._keys(artifact.segment_ids(), kv.form), kv.canary
            files = SegmentFiles(artifact, kv, keys, self._restoring(artifact), lambda: self._prove(artifact, canary))
            if verify == "full" and artifact.manifest.origin.frame == self.origin.frame:
                self._prove(artifact, canary)
        return artifact, Shelf(artifact, files, lambda heads: self._summaries(artifact, heads))

    def _residency(self, book: CompiledDocument, path: Path, wanted: str, form: Form) -> Residency:
        """Where the keys and values of segments will be; ``auto`` stores them where they are small enough."""
        for said in RESIDENCIES:
            if wanted == said:
                return said
        try:
            self._probe()
        except ModelError:  # its segments cannot be read, so there is nothing to store
            return "none"
        needed = self._segment_bytes(book, form)
        return "disk" if sizes.worth_storing(needed, shutil.disk_usage(path).free) else "none"

    def _expected(self, book: CompiledDocument, residency: Residency, form: Form) -> int:
        """What ``book`` takes in files beside its embeddings and summaries, which are small."""
        text_bytes = sum(len(document.text.encode("utf-8", "surrogatepass")) for document in book.documents)
        texts_alone = sizes.document_bytes(text_bytes, book.tokens, len(book.units)) + sizes.copy_bytes(book.tokens)
        return texts_alone + (self._segment_bytes(book, form) if residency in ("ram", "disk") else 0)

    def _segment_bytes(self, book: CompiledDocument, form: Form) -> int:
        model = self._loaded.model
        return sizes.segment_bytes(book.tokens, bytes_per_token(model), model.dtype.itemsize, form)

    def _segments(
        self, writer: Writer, book: CompiledDocument, residency: Residency, form: Form
    ) -> tuple[SegmentKV | None, Summaries | None]:
        """Keys and values of all segments in files, and summaries where heads have keys that can be summed up.

        What no file or memory has is read for it.
        """
        if residency == "none":
            return None, None
        probe = self._probe()
        heads = glancing(probe, book.calibration)
        ids = [book.segment_ids(segment) for segment in range(len(book.segments))]
        wanted = {}
        if probe.summarises or residency == "summary":  # which says why not, where that is all that is wanted
            wanted["summary"] = summaries.keys(self.origin.model, probe, heads, book.units, book.segments, ids)
        if residency != "summary":
            wanted["segment"] = self._keys(ids, form)
        found: dict[str, dict[int, Entry]] = {kind: {} for kind in wanted}
        for kind, keys in wanted.items():
            for segment, key in enumerate(keys):
                if (entry := writer.known(key) or book.shared(segment, key, writer.share)) is not None:
                    found[kind][segment] = entry
        missing = [segment for segment in range(len(ids)) if any(segment not in known for known in found.values())]
        depth = deepest(heads) if residency == "summary" else None
        # what was stored in eight bits is not stored again as if the model had computed it
        for segment, kept in (book.read if book.exact else book.read_again)(missing, depth):
            for kind, keys in wanted.items():
                if segment not in found[kind]:
                    if kind == "summary":
                        own = lengths(book.units, book.segments[segment])
                        data = summaries.packed(probe.summarise(kept, own, heads))
                    else:
                        data = segments.pack(segment_kv.pack(kept, form == "int8"))
                    found[kind][segment] = writer.add(kind, data, keys[segment])
        stored = {
            kind: tuple(StoredSegment(key, found[kind][segment]) for segment, key in enumerate(keys))
            for kind, keys in wanted.items()
        }
        canary = self._canary()
        kept_kv = SegmentKV(residency, form, canary, stored["segment"]) if residency != "summary" else None
        return kept_kv, Summaries(canary, stored["summary"]) if "summary" in stored else None

    def _keys(self, ids: Sequence[NDArray[np.int32]], form: Form) -> list[str]:
        """What the keys and values of each segment would be computed from now."""
        name = self.origin.model
        return [segments.key(name, self._frame.before, own.tolist(), form) for own in ids]

    def _restoring(self, artifact: Artifact) -> segments.Restore:
        """Makes a segment of its stored tensors; what they must look like is seen on a segment that is read now."""
        like: list[Any] = []
        ids = artifact.segment_ids()

        def restore(found: Mapping[str, Tensor], segment: int) -> Any:
            if not like:
                like.append(next(iter(self._probe().read([ids[segment][:1].tolist()])))[1])
            return segment_kv.unpack(found, like[0], len(ids[segment]))

        return restore

    def _canary(self) -> tuple[float, ...]:
        """What the model makes of a fixed question without any text: natural-log probability of each token."""
        probe = self._probe()
        said = probe.null(probe.inquiry(_CANARY, likelihood=True)).likelihood
        return tuple(round(float(value), 6) for value in said)

    def _summaries(self, artifact: Artifact, heads: Sequence[tuple[int, int]]) -> list[Summary] | None:
        """What stands for every segment where ``heads`` look; None where that is not stored."""
        found = summaries.restored(artifact, self._probe(), tuple(heads), self.origin.model)
        if found is not None and artifact.checks:
            assert artifact.manifest.summaries is not None
            self._prove(artifact, artifact.manifest.summaries.canary)
        return found

    def _prove(self, artifact: Artifact, was: Sequence[float]) -> None:
        """Raises ArtifactError when the model does not say what it said when the stored segments were read."""
        now = self._canary()
        limit = _TOLERANCE if "float32" in artifact.manifest.origin.dtype else _HALF_TOLERANCE
        apart = float(np.abs(np.subtract(was, now)).mean()) if len(was) == len(now) else np.inf
        if not apart <= limit:
            raise ArtifactError(
                f"{artifact.folder}: canary: the model says something else than when the segments were read (mean "
                f"difference {apart:.3f} in log-probability, at most {limit}), though its fingerprint is the same. "
                f"Its weights or attention were changed: compile the documents again."
            )

    def _compare(self, artifact: Artifact) -> None:
        """Raises ArtifactError naming what the artifact was made with that the reader is not.

        Units and segments that the reader would cut otherwise are as good, and a warning.
        """
        was, now = artifact.manifest.origin, self.origin
        if cut := _apart(was, now, ("splitter", "segment_tokens"), 80):
            said = f"{artifact.folder} is asked as it was cut, which this reader would do otherwise: {cut}."
            artifact.warn(said, stands=True)
        if apart := _apart(was, now, ("dtype", "model", "tokenizer", "template"), 16):
            raise ArtifactError(
                f"{artifact.folder} was compiled with {was.name}, and this reader has {now.name}; they differ in "
                f"{apart}. Load that model, or compile the documents again with this one."
            )


def _apart(was: Origin, now: Origin, fields: Sequence[str], characters: int) -> str:
    """The fields that differ, each with the first ``characters`` of what it was and is."""
    pairs = [(field, str(getattr(was, field)), str(getattr(now, field))) for field in fields]
    return ", ".join(f"{f} ({a[:characters]}, now {b[:characters]})" for f, a, b in pairs if a != b)


def check_model(book: CompiledDocument, name: str) -> None:
    """Raises CacheError where ``book`` was compiled for another model than the one of that fingerprint."""
    if book.fingerprint != name:
        raise CacheError(
            f"the document was compiled for another model or tokenizer, or before weights or adapters of this one "
            f"changed ({book.fingerprint[:12]}, not {name[:12]}): its tokens and keys mean nothing here. Compile it "
            f"with this reader."
        )
