"""A compiled document: what was worked out once and serves every question.

Owns units, segments, the lexical index, embeddings and the keys and values of segments up to a limit of memory. Knows
the probe and the encoder by their protocols only, and no selector.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longctx.lexical import Lexical
from longctx.protocols import Calibrated, Inquirer, Progress
from longctx.types import Document, EncodedDocument, Inquiry, Reading, Unit


class TextEncoder(Protocol):
    """Sentences to vectors of length one."""

    def encode(self, texts: Sequence[str], *, progress: Progress | None = None) -> NDArray[np.float32]: ...


class EncoderSource(Protocol):
    """Gives the encoder for a softmax temperature, or raises MissingExtra saying what to install."""

    @property
    def available(self) -> bool: ...
    def __call__(self, temperature: float) -> TextEncoder: ...


class Memory:
    """Segments' keys and values, the latest used kept, at most ``limit_bytes`` of them."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = Lock()  # a book may be asked by several threads

    def __contains__(self, segment: int) -> bool:
        return segment in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, segment: int) -> Any:
        """What is kept of ``segment``, or None."""
        with self._lock:
            if segment in self._kept:
                self._kept.move_to_end(segment)
            return self._kept.get(segment)

    def put(self, segment: int, stored: Any) -> None:
        """Keep ``stored`` and drop the longest unused until it fits; what is larger than the limit is not kept."""
        with self._lock:
            if segment in self._kept:
                self.used_bytes -= self._kept.pop(segment).nbytes
            if stored.nbytes > self.limit_bytes:
                return
            while self.used_bytes + stored.nbytes > self.limit_bytes:
                self.used_bytes -= self._kept.popitem(last=False)[1].nbytes
            self._kept[segment] = stored
            self.used_bytes += stored.nbytes


class CompiledDocument:
    """One or more documents, ready for any number of questions. Made by ``Reader.compile``."""

    def __init__(
        self,
        encoded: Sequence[EncodedDocument],
        units: Sequence[Unit],
        segments: Sequence[tuple[int, int]],
        probe: Callable[[], Inquirer],
        calibration: Callable[[], Calibrated | None],
        encoder: EncoderSource,
        memory: Memory,
        warnings: tuple[str, ...] = (),
        fingerprint: str = "",
    ) -> None:
        self.encoded, self.units, self.segments = tuple(encoded), tuple(units), tuple(segments)
        self.documents: tuple[Document, ...] = tuple(e.document for e in encoded)
        self.memory, self.warnings, self.fingerprint = memory, warnings, fingerprint
        self._probe, self._calibration, self._encoder = probe, calibration, encoder
        self._vectors: dict[float, NDArray[np.float32]] = {}
        self._spent = 0
        self._latest: tuple[Inquiry, dict[int, Reading]] | None = None
        self._progress: Progress | None = None

    @contextmanager
    def reporting(self, progress: Progress | None) -> Iterator[None]:
        """Inside, what is worked out reports to ``progress``; an earlier listener has its place back afterwards."""
        before, self._progress = self._progress, progress
        try:
            yield
        finally:
            self._progress = before

    def prepare(self, progress: Progress | None = None) -> None:
        """Afterwards everything that questions share is worked out: index, embeddings, segments while memory lasts."""
        with self.reporting(progress):
            self.lexical("")
            if self.can_embed:
                self.vectors()
            for _ in self.read(range(len(self.segments))):
                pass

    @property
    def tokens(self) -> int:
        """Tokens of all documents together."""
        return sum(len(e.token_ids) for e in self.encoded)

    @property
    def probe(self) -> Inquirer:
        """The model as a reader of segments. Raises ModelError where its layers cannot be read so."""
        return self._probe()

    @property
    def calibration(self) -> Calibrated | None:
        """The model's retrieval heads, found now if they were not before; None where calibration is switched off."""
        return self._calibration()

    @property
    def can_embed(self) -> bool:
        """Whether there is a sentence encoder."""
        return self._encoder.available

    def text(self, unit: int) -> str:
        """The unit's own text."""
        u = self.units[unit]
        return self.documents[u.document].text[u.start : u.end]

    def ids(self, unit: int) -> NDArray[np.int32]:
        """The unit's own tokens."""
        u = self.units[unit]
        return self.encoded[u.document].token_ids[u.first : u.last]

    def shown(self, unit: int) -> str:
        """The unit's text behind its heading or signature, where it has one."""
        u = self.units[unit]
        if u.context is None:
            return self.text(unit)
        start, end = u.context
        return self.documents[u.document].text[start:end] + "\n" + self.text(unit)

    @cached_property
    def index(self) -> Lexical:
        return Lexical([self.shown(i) for i in range(len(self.units))])

    def lexical(self, question: str) -> NDArray[np.float32]:
        """BM25 of every unit, [units]; zero where no word is shared."""
        return self.index.scores(question)

    def coverage(self, question: str) -> float:
        """The largest share of the question's words, by weight, that one unit holds."""
        return self.index.coverage(question)

    def vectors(self, temperature: float = 1.0) -> NDArray[np.float32]:
        """The embedding of every unit, [units, dim], of length one. Raises MissingExtra without an encoder."""
        if temperature not in self._vectors:
            texts = [self.shown(i) for i in range(len(self.units))]
            self._vectors[temperature] = self._encoder(temperature).encode(texts, progress=self._progress)
        return self._vectors[temperature]

    def similarity(self, question: str, temperature: float = 1.0) -> NDArray[np.float32]:
        """Cosine of the question's and every unit's embedding, [units]. Raises MissingExtra without an encoder."""
        vectors = self.vectors(temperature)
        return np.asarray(vectors @ self._encoder(temperature).encode([question])[0], dtype=np.float32)

    def segment_ids(self, segment: int) -> NDArray[np.int32]:
        first, last = self.segments[segment]
        document = self.units[first].document
        return self.encoded[document].token_ids[self.units[first].first : self.units[last - 1].last]

    def read(self, segments: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Keys and values of ``segments``: those in memory first, then the others, read now and kept while they fit."""
        missing = []
        for segment in segments:
            kept = self.memory.get(segment)
            if kept is None:
                missing.append(segment)
            else:
                yield segment, kept
        done = 0
        for index, stored in self.probe.read([self.segment_ids(s).tolist() for s in missing]):
            done += 1
            self._spent += stored.tokens
            self.memory.put(missing[index], stored)
            if self._progress is not None:
                self._progress("reading", done, len(missing))
            yield missing[index], stored

    def ask(self, segments: Sequence[int], inquiry: Inquiry) -> Iterator[tuple[int, Reading]]:
        """The reading of each of ``segments`` as (segment, reading); segments not yet read are read first.

        The readings of the latest inquiry are kept while they are small, so that the same question with another budget
        costs only the segments it adds.
        """
        if self._latest is None or self._latest[0] != inquiry:
            self._latest = (inquiry, {})
        known = self._latest[1]
        small = not (inquiry.next_token or inquiry.keep_rows)
        batch: list[tuple[int, Any]] = []
        for segment in segments:
            if segment in known:
                yield segment, known[segment]
        missing = [segment for segment in segments if segment not in known]
        held = {segment: kept for segment in missing if (kept := self.memory.get(segment)) is not None}
        yield from self._ask(list(held.items()), inquiry, known if small else {})  # at once: they are in memory anyway
        for segment, stored in self.read([segment for segment in missing if segment not in held]):
            batch.append((segment, stored))
            if len(batch) >= _ASK_AT_ONCE:
                yield from self._ask(batch, inquiry, known if small else {})
                batch = []
        yield from self._ask(batch, inquiry, known if small else {})

    def spent(self) -> int:
        """Token-forwards spent through ``read`` and ``ask`` so far."""
        return self._spent

    def _ask(
        self, batch: Sequence[tuple[int, Any]], inquiry: Inquiry, known: dict[int, Reading]
    ) -> Iterator[tuple[int, Reading]]:
        for index, reading in self.probe.ask([stored for _, stored in batch], inquiry):
            self._spent += len(inquiry.ids)
            known[batch[index][0]] = reading
            yield batch[index][0], reading


_ASK_AT_ONCE = 16  # segments held at once while asking, so that a long document needs no more memory than its limit
