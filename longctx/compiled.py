"""A compiled document: what was worked out once and serves every question.

Owns units, segments, the lexical index, embeddings and the keys and values of segments up to a limit of memory. Knows
the probe and the encoder by their protocols only, and no selector.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longctx.embeddings import PLAIN, Embeddings
from longctx.errors import CacheError
from longctx.latest import Latest
from longctx.lexical import Lexical
from longctx.memory import Memory
from longctx.overview import Heads, glancing, overview
from longctx.pieces import pieces
from longctx.protocols import By, Calibrated, Inquirer, Progress
from longctx.suffixes import SuffixIndex
from longctx.supplies import EncoderSource, Stored
from longctx.types import Document, EncodedDocument, Inquiry, Reading, Saved, Step, Unit
from longctx.values import place


class _Own(threading.local):
    """What a thread that asks a document has of its own: who listens, and what its questions have cost."""

    progress: Progress | None = None
    spent: int = 0


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
        stored: Stored | None = None,
        save: Callable[..., Saved] | None = None,
    ) -> None:
        self.encoded, self.units, self.segments = tuple(encoded), tuple(units), tuple(segments)
        self.documents: tuple[Document, ...] = tuple(e.document for e in encoded)
        self.memory, self.warnings, self.fingerprint = memory, warnings, fingerprint
        self._probe, self._calibration = probe, calibration
        self._stored, self._save = stored, save
        self.saved: Saved | None = None  # what saving did, where that was part of compiling
        self.embeddings = Embeddings(
            self._shown,
            lambda tokens: pieces(self.encoded, self.units, tokens),
            encoder,
            stored,
            lambda: self._own.progress,
        )
        self._own = _Own()
        self._overview: tuple[Heads, Any] | None = None
        self._latest = Latest()

    @contextmanager
    def reporting(self, progress: Progress | None) -> Iterator[None]:
        """Inside, what this thread works out reports to ``progress``; an earlier listener has its place back then."""
        before, self._own.progress = self._own.progress, progress
        try:
            yield
        finally:
            self._own.progress = before

    def prepare(self, progress: Progress | None = None, *, segments: bool = True) -> None:
        """Afterwards what questions share is worked out: index, embeddings, ``segments`` as far as memory goes."""
        with self.reporting(progress):
            self.lexical("")
            if not self.why_no_embeddings:
                self.embeddings.vectors()
            if segments:
                for _ in self.read(range(len(self.segments))):
                    pass

    @property
    def tokens(self) -> int:
        """Tokens of all documents together."""
        return sum(len(e.token_ids) for e in self.encoded)

    @property
    def nbytes(self) -> int:
        """Of what grows with the text and questions share: tokens, embeddings, segments' keys and values in memory."""
        return sum(e.token_ids.nbytes for e in self.encoded) + self.embeddings.nbytes + self.memory.used_bytes

    @property
    def longest_segment(self) -> int:
        """Tokens of the longest segment."""
        return max(self.units[last - 1].last - self.units[first].first for first, last in self.segments)

    @property
    def probe(self) -> Inquirer:
        """The model as a reader of segments. Raises ModelError where its layers cannot be read so."""
        return self._probe()

    @property
    def calibration(self) -> Calibrated | None:
        """The model's retrieval heads, found now if they were not before; None where calibration is switched off."""
        return self._calibration()

    @property
    def why_no_embeddings(self) -> str:
        """Why there is no sentence encoder; empty where there is one."""
        return self.embeddings.encoder.why_unavailable

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
        return self.documents[u.document].text[slice(*u.context)] + "\n" + self.text(unit)

    def _shown(self) -> list[str]:
        return [self.shown(i) for i in range(len(self.units))]

    @cached_property
    def index(self) -> Lexical:
        return Lexical(self._shown())

    @cached_property
    def copies(self) -> SuffixIndex:
        """Where the ends of an answer stand in the documents, for drafting: found or made when first asked for."""
        tokens = np.concatenate([encoded.token_ids for encoded in self.encoded])
        return SuffixIndex(tokens) if self._stored is None else SuffixIndex(tokens, self._stored.order)

    def lexical(self, question: str) -> NDArray[np.float32]:
        """BM25 of every unit, [units]; zero where no word is shared."""
        return self.index.scores(question)

    def coverage(self, question: str) -> float:
        """The largest share of the question's words, by weight, that one unit holds."""
        return self.index.coverage(question)

    def similarity(
        self, question: str, temperature: float = PLAIN, piece_tokens: int = 0, signature: float = 0.0
    ) -> NDArray[np.float32]:
        """Cosine of the question's and every unit's embedding, [units]. Raises as ``why_no_embeddings`` says.

        With ``piece_tokens`` a unit of code has the best cosine of its text and of its pieces of about so many tokens;
        where it has a signature, that one's cosine makes up the share ``signature`` of the score.
        """
        return self.embeddings.similarity(question, temperature, piece_tokens, signature)

    def segment_ids(self, segment: int) -> NDArray[np.int32]:
        first, last = self.segments[segment]
        document = self.units[first].document
        return self.encoded[document].token_ids[self.units[first].first : self.units[last - 1].last]

    def read(self, segments: Sequence[int], depth: int | None = None) -> Iterator[tuple[int, Any]]:
        """Keys and values of ``segments``: those in memory first, then those in files, then the others.

        The others are read by the model now, through ``depth`` layers (default: all). A segment of which fewer layers
        are at hand is read again.
        """
        left = list(segments)
        depth = self.probe.depth() if depth is None and left else depth
        for get in (self.memory.get, *((self._stored.get,) if self._stored is not None else ())):
            absent = []
            for segment in left:
                kept = get(segment)
                if kept is None or kept.depth < depth:
                    absent.append(segment)
                else:
                    yield segment, kept
            left = absent
        yield from self.read_again(left, depth)

    def read_again(self, segments: Sequence[int], depth: int | None = None) -> Iterator[tuple[int, Any]]:
        """Keys and values of ``segments`` as the model computes them now, kept in memory while they fit."""
        read = self.probe.read([self.segment_ids(segment).tolist() for segment in segments], depth)
        for done, (index, stored) in enumerate(read, 1):
            self._own.spent += stored.tokens
            self.memory.put(segments[index], stored)
            if self._own.progress is not None:
                self._own.progress("reading", done, len(segments))
            yield segments[index], stored

    @property
    def exact(self) -> bool:
        """Whether all keys and values at hand are those the model computed, to the bit."""
        return self._stored is None or self._stored.exact

    def shared(self, segment: int, key: str, take: Callable[[Path, Any], bool]) -> Any:
        """The file ``segment`` was loaded from, if it is what ``key`` says and ``take`` could have it; else None."""
        return None if self._stored is None else self._stored.share(segment, key, take)

    def save(
        self,
        path: str | Path,
        *,
        segment_kv: str = "auto",
        segment_form: str = "exact",
        progress: bool | Progress | None = None,
    ) -> Saved:
        """Afterwards ``path`` is a folder that ``Reader.load`` opens, holding this document; before that, what it was.

        ``segment_kv`` says where the keys and values of segments will be: ``"none"`` (a later question reads again what
        it needs), ``"summary"`` (it does too, but not for ``longheads``: summaries of them are kept), ``"disk"`` (with
        summaries, in files that are mapped), ``"ram"`` (in files, and in memory once loaded), or ``"auto"`` (on disk
        where they are small enough). ``segment_form`` is ``"exact"`` or ``"int8"``, half as large or less.
        What the folder held of the same text is kept and not worked out again. Raises BadOption for other words,
        UsageError where something else is, ArtifactBusy while another process writes there, DoesNotFit for a full disk.
        """
        if self._save is None:
            raise CacheError("this document was made without a reader, so there is nothing to save it with.")
        return self._save(self, place("path", path), segment_kv, segment_form, progress)

    def step(self, seconds: float) -> Step:
        """That it was made ready for a question in ``seconds``, for a trace."""
        facts = {"units": len(self.units), "segments": len(self.segments), "bytes": self.nbytes}
        return Step("compile", seconds, facts)

    def take_warnings(self) -> tuple[str, ...]:
        """What was found out about the stored files since the last result."""
        return () if self._stored is None else self._stored.take_warnings()

    def ask(self, segments: Sequence[int], inquiry: Inquiry) -> Iterator[tuple[int, Reading]]:
        """The reading of each of ``segments`` as (segment, reading); segments not yet read are read first.

        The readings of the latest inquiry are kept while they are small, so that the same question with another budget
        costs only the segments it adds, and one that wants less of the same pass costs nothing.
        """
        known = self._latest.of(inquiry, segments)
        missing = [segment for segment in segments if segment not in known]
        yield from [(segment, known[segment]) for segment in segments if segment in known]
        depth = self.probe.depth(inquiry)
        held = {s: kept for s in missing if (kept := self.memory.get(s)) is not None and kept.depth >= depth}
        yield from self._ask(list(held.items()), inquiry)  # at once: they are in memory anyway
        batch: list[tuple[int, Any]] = []
        for segment, stored in self.read([segment for segment in missing if segment not in held], depth):
            batch.append((segment, stored))
            if len(batch) >= ASK_AT_ONCE:
                yield from self._ask(batch, inquiry)
                batch = []
        yield from self._ask(batch, inquiry)

    def glance(self, question: str, by: By = "representation") -> NDArray[np.float32]:
        """What heads would look at, held against summaries of the segments: a share of each unit, [heads, units].

        Segments that have no summary yet are read first; the summaries are kept for later questions.
        """
        heads = glancing(self.probe, self.calibration)
        inquiry = self.probe.inquiry(question, heads=heads)  # first: it refuses heads that there are not
        if self._overview is None or self._overview[0] != heads:
            made = overview(self.probe, self._stored, self.units, self.segments, heads, self.read)
            self._overview = (heads, made)
        self._own.spent += len(inquiry.ids)
        return self.probe.glance(self._overview[1], inquiry, self.longest_segment, by)

    def spent(self) -> int:
        """Token-forwards that this thread has spent through ``read`` and ``ask`` so far."""
        return self._own.spent

    def _ask(self, batch: Sequence[tuple[int, Any]], inquiry: Inquiry) -> Iterator[tuple[int, Reading]]:
        for index, reading in self.probe.ask([stored for _, stored in batch], inquiry):
            self._own.spent += len(inquiry.ids)
            self._latest.keep(inquiry, batch[index][0], reading)
            yield batch[index][0], reading


ASK_AT_ONCE = 16  # segments held at once while asking, so that a long document needs no more memory than its limit
