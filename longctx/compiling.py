"""Makes compiled documents for one reader: out of texts, or out of the files they were stored in.

Owns what a compiled document is given to work with. Knows no method and no question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from longctx.backend.footprint import bytes_per_token
from longctx.backend.model import Loaded
from longctx.backend.probe import Probe
from longctx.backend.tokens import Tokens
from longctx.compiled import CompiledDocument
from longctx.errors import BadOption, ModelError
from longctx.indexing import documents_of, encode
from longctx.memory import Memory
from longctx.protocols import Progress
from longctx.resources import Calibrator, Encoders
from longctx.segments import group
from longctx.store.artifact import Verify
from longctx.store.shelf import Shelf
from longctx.storing import Cutting, Storage, check_model
from longctx.types import Document, EncodedDocument, Unit
from longctx.values import place

Source = Document | Sequence[Document] | CompiledDocument


class Compiler:
    """One model with its splitter, encoder and calibration, and the memory each document may take for segments."""

    def __init__(
        self,
        loaded: Loaded,
        tokens: Tokens,
        probe: Callable[[], Probe],
        encoders: Encoders,
        calibrator: Calibrator,
        cutting: Cutting,
        memory_bytes: int,
    ) -> None:
        self._tokens, self._probe, self._encoders, self._calibrator = tokens, probe, encoders, calibrator
        self._cutting, self._memory_bytes = cutting, memory_bytes
        self._storage = Storage(loaded, tokens.frame(), probe, cutting, lambda: calibrator.fingerprint)

    def index(self, documents: Source, report: Progress | None) -> CompiledDocument:
        """Tokens, units and segments of ``documents``; what was compiled before is returned as it is."""
        if isinstance(documents, CompiledDocument):
            check_model(documents, self._calibrator.fingerprint)
            return documents
        encoded, units, warnings = encode(documents_of(documents), self._tokens.encode, self._cutting.splitter, report)
        return self._book(encoded, units, group(units, self._cutting.segment_tokens), warnings, report)

    def compile(
        self, documents: Source, path: str | Path | None, segment_kv: str, segment_form: str, report: Progress | None
    ) -> CompiledDocument:
        """What ``Reader.compile`` says: all that questions share worked out, in memory or in the files of ``path``."""
        if path is None and (segment_kv, segment_form) != ("auto", "exact"):
            raise BadOption(
                f"segment_kv={segment_kv!r} and segment_form={segment_form!r} say how files hold segments: give path=, "
                f"or leave them out."
            )
        folder = None if path is None else place("path", path)
        book = self.index(documents, report)
        if folder is not None:
            saved = book.save(folder, segment_kv=segment_kv, segment_form=segment_form, progress=report)
            stored = self.load(folder, "lazy", report)
            stored.saved = saved
            return stored
        try:
            held = book.tokens * bytes_per_token(self._probe().model) <= self._memory_bytes
        except ModelError:  # its layers cannot be read by segments: a question that needs them says so
            held = False
        book.prepare(report, segments=held)
        return book

    def load(self, path: Path, verify: Verify, report: Progress | None) -> CompiledDocument:
        """The document stored at ``path``. Raises ArtifactError where it is damaged or another model's."""
        artifact, stored = self._storage.load(path, verify)
        held = artifact.manifest
        book = self._book(artifact.encoded, artifact.units, held.segments, held.warnings, report, stored)
        for segment, kept in stored.resident():
            if book.memory.used_bytes + kept.nbytes > book.memory.limit_bytes:
                break
            book.memory.put(segment, kept)
        return book

    def _book(
        self,
        encoded: Sequence[EncodedDocument],
        units: Sequence[Unit],
        segments: Sequence[tuple[int, int]],
        warnings: tuple[str, ...],
        report: Progress | None,
        stored: Shelf | None = None,
    ) -> CompiledDocument:
        return CompiledDocument(
            encoded,
            units,
            segments,
            self._probe,
            lambda: self._calibrator(self._probe(), report),
            self._encoders,
            Memory(self._memory_bytes),
            warnings,
            self._calibrator.fingerprint,
            stored,
            self._storage.save,
        )
