"""Compile, select, ask, stream: five calls in a row and a trace around each.

Owns the order of the stages and what is handed to whom. Knows no method: splitters and selectors are named by strings
or passed as objects, and only scores and spans come back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from longctx import plugins, selecting, values
from longctx.answering import Request, Said, answer, carrying, told
from longctx.backend.alone import check_free
from longctx.backend.model import Loaded, from_pretrained, wrap
from longctx.backend.tokens import Tokens
from longctx.cite import cite
from longctx.compiled import CompiledDocument
from longctx.compiling import Compiler, Source
from longctx.console import listener
from longctx.contexts import Policy, reach
from longctx.cut import joined
from longctx.decoding.control import Controller
from longctx.errors import EmptyInput
from longctx.generation import CONTROLLER
from longctx.last_context import LastContext
from longctx.origins import Origins
from longctx.promises import guarantee
from longctx.protocols import Progress, Selector
from longctx.resources import Calibrator, Encoders, Probes
from longctx.room import Room
from longctx.stacks import Drafters
from longctx.store.artifact import Verify
from longctx.storing import Cutting
from longctx.streaming import events
from longctx.types import Answer, Event, Selection, Step

SEGMENT_TOKENS = 512
MEMORY_BYTES = 512 * 2**20
NOTHING = "The text says nothing about this."


class Reader:
    """A model that reads documents longer than its window. Made from a name or around a loaded model.

    ``encoder`` names the sentence encoder ("auto": the embedded one where it is installed; None: none).
    ``calibration`` is "auto" (made on first use and kept in the cache folder), None, or a Calibration.
    ``segment_memory_bytes`` bounds the keys and values of segments that a compiled document keeps for later questions.
    ``progress`` is True for a bar on stderr, or a function of stage, done and total.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        splitter: Any = "auto",
        encoder: Any = "auto",
        calibration: Any = "auto",
        segment_tokens: int = SEGMENT_TOKENS,
        segment_memory_bytes: int = MEMORY_BYTES,
        progress: bool | Progress | None = None,
    ) -> None:
        values.whole("segment_tokens", segment_tokens, 1)
        values.whole("segment_memory_bytes", segment_memory_bytes, 0)
        self._loaded: Loaded = model if isinstance(model, Loaded) else wrap(model, tokenizer)
        self._tokens = Tokens(self._loaded.tokenizer)
        self._frame = self._tokens.frame()
        self._calibrator = Calibrator(self._loaded, calibration)
        self._room = Room(self._loaded.window, self._frame.tokens)
        cutting = Cutting(plugins.resolve("splitters", splitter), segment_tokens)
        self._probe = Probes(self._loaded, self._tokens, self._calibrator)
        made_with = (self._loaded, self._tokens, self._probe, Encoders(encoder).fetched(), self._calibrator)
        self._compiler = Compiler(*made_with, cutting, segment_memory_bytes)
        self._progress, self._context = listener(progress), LastContext()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        dtype: Any = "auto",
        device: str = "auto",
        *,
        progress: bool | Progress | None = None,
        **options: Any,
    ) -> Reader:
        """A reader for a hub id, a local folder or ``"embedded"``. Raises ModelError when it cannot be loaded."""
        loaded = from_pretrained(name, dtype=dtype, device=device, progress=listener(progress))
        return cls(loaded, loaded.tokenizer, progress=progress, **options)

    @property
    def model(self) -> Any:
        """The Hugging Face model itself."""
        return self._loaded.model

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer itself."""
        return self._loaded.tokenizer

    @property
    def window(self) -> int:
        """Tokens the model was trained to read at once."""
        return self._loaded.window

    @property
    def fingerprint(self) -> str:
        """A hash of the model's configuration, vocabulary and weights."""
        return self._calibrator.fingerprint

    def longest_selection(self, question: str, max_new_tokens: int = 0) -> int:
        """The largest ``budget_tokens`` that the window holds beside ``question`` and ``max_new_tokens``."""
        asked = self._count(values.text("question", question))
        return self._room.longest(asked, values.whole("max_new_tokens", max_new_tokens, 0))

    def compile(
        self,
        documents: Source,
        *,
        path: str | Path | None = None,
        segment_kv: str = "auto",
        segment_form: str = "exact",
        progress: bool | Progress = False,
    ) -> CompiledDocument:
        """The documents tokenised, cut into units, indexed and embedded, and their segments read if all fit into memory

        (``segment_memory_bytes``); else a question reads those that it needs. Every question is answered from this
        work. With ``path`` all goes straight into files, whatever its size, and what the path held of the same text is
        kept: see ``CompiledDocument.save``. Raises EmptyInput for a document without text and BadOption for
        ``segment_kv`` or ``segment_form`` without ``path``.
        """
        return self._compiler.compile(documents, path, segment_kv, segment_form, self._report(progress))

    def load(self, path: str | Path, *, verify: Verify = "lazy") -> CompiledDocument:
        """The compiled document stored at ``path``, ready for questions.

        ``verify``: ``"full"`` checks every file now, ``"lazy"`` each when it is first used, ``"off"`` only lengths and
        shapes. Raises ArtifactError for what is damaged, of a newer format, or compiled with another model.
        """
        return self._compiler.load(values.place("path", path), verify, self._progress)

    def select(
        self,
        documents: Source,
        question: str,
        *,
        budget_tokens: int | None = None,
        selector: str | Selector = "auto",
        progress: bool | Progress = False,
    ) -> Selection:
        """The spans worth reading for ``question``: verbatim, in document order, within ``budget_tokens`` (see ask)."""
        report, request = self._report(progress), Request(question, budget_tokens, selector)
        budget = self._check(request)
        return self._select(self._compiler.index(documents, report), request, budget, report)

    def prompt(self, text: str, question: str) -> list[int]:
        """The ids that the model is given to answer ``question`` from ``text``, in its own chat template."""
        frame = self._frame
        return [*frame.before, *self._tokens.plain(text), *frame.middle, *self._tokens.plain(question), *frame.after]

    def recut(self, book: CompiledDocument, selection: Selection, budget_tokens: int) -> Selection:
        """The scores of ``selection`` cut to another budget, for methods whose scores do not depend on the budget."""
        return selecting.recut(book, selection, budget_tokens, self._count)

    def ask(
        self,
        documents: Source,
        question: str,
        *,
        budget_tokens: int | None = None,
        max_new_tokens: int = 128,
        selector: str | Selector = "auto",
        drafters: Drafters = "auto",
        controller: str | Controller = CONTROLLER,
        kv: Policy | None = None,
        allow_partial: bool = False,
        temperature: float = 0.0,
        seed: int | None = None,
        progress: bool | Progress = False,
    ) -> Answer:
        """What the model says to ``question`` after reading the spans selected for it, with citations.

        ``budget_tokens`` of text are selected: 2,048, or what the window holds of them beside question and answer.
        ``drafters`` make it say that in fewer passes and change nothing of it; ``[]`` decodes token by token, and
        ``controller`` decides how much is drafted. ``kv`` bounds the keys that each token reads of the text; the text
        is read once for all questions about it. ``allow_partial`` leaves layers that keep no keys as they are.
        """
        how = (temperature, seed, drafters, kv, allow_partial, controller)
        request = Request(question, budget_tokens, selector, max_new_tokens, *how)
        return self._answer(documents, request, self._report(progress), lambda text: None)

    def stream(
        self,
        documents: Source,
        question: str,
        *,
        budget_tokens: int | None = None,
        max_new_tokens: int = 128,
        selector: str | Selector = "auto",
        drafters: Drafters = "auto",
        controller: str | Controller = CONTROLLER,
        kv: Policy | None = None,
        allow_partial: bool = False,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Iterator[Event]:
        """The same as ``ask``, as it happens, the answer last. Work stops within one batch when the caller stops.

        Raises CacheError inside a context that this thread has attached.
        """
        check_free()
        how = (temperature, seed, drafters, kv, allow_partial, controller)
        request = Request(question, budget_tokens, selector, max_new_tokens, *how)
        return events(lambda report, emit: self._answer(documents, request, report, emit))

    def _answer(
        self, documents: Source, request: Request, report: Progress | None, emit: Callable[[str], None]
    ) -> Answer:
        """Compile, select, decode, cite: each timed, and what it did kept in the trace."""
        question = request.question
        request.check()
        budget = self._check(request)
        times, done = [time.perf_counter()], list[Step]()
        with carrying(done):
            book = self._compiler.index(documents, report)
            times.append(time.perf_counter())
            done.append(book.step(times[1] - times[0]))
            selection = self._select(book, request, budget, report)
            done += selection.trace
            times.append(time.perf_counter())
            prompt_tokens, said, read = 0, Said(NOTHING), len(selection.as_read)
            if not read:
                emit(NOTHING)
            else:
                prompt = self.prompt(joined(book.documents, selection.as_read), question)
                prompt_tokens, behind = len(prompt), self._behind(question)
                self._room.check_prompt(reach(request.kv, len(prompt), behind), request.max_new_tokens)
                context = None
                if request.kv is not None:
                    context = self._context(self.model, prompt[:-behind], request.kv, request.allow_partial, report)
                origins = Origins(self._tokens, book.documents, selection.as_read, len(self._frame.before))
                votes = origins.votes(len(prompt))
                said = answer(self.model, self._tokens, prompt, request, report, emit, context, votes)
                said = replace(said, stats=replace(said.stats, copies=origins.copies(said.stats.copied)))
            times.append(time.perf_counter())
            citations = cite(said.text, question, book.documents, selection.as_read, book.index.weight) if read else ()
            times.append(time.perf_counter())
            whole = bool(read) and not selection.dropped_tokens and said.lossless
            last = prompt_tokens + said.tokens
            promise = guarantee(self.model, request.temperature, prompt_tokens, last, whole)
            return told(said, citations, selection, book, prompt_tokens, times, promise, done)

    def _select(self, book: CompiledDocument, request: Request, budget: int, report: Progress | None) -> Selection:
        """The selection of one request; everything at once is held against the window, as its length is known now."""
        question, selector = request.question, request.selector
        asked, behind = self._count(question), self._behind(question)
        if selector != selecting.EVERYTHING:
            needed = len(self._frame.before) + min(budget, book.tokens) + behind
            self._room.check_budget(asked, budget, request.max_new_tokens, reach(request.kv, needed, behind)[0])
            self._room.check_segment(asked, book.longest_segment)
        with book.reporting(report):
            selection = selecting.select(
                book,
                question,
                budget,
                selector,
                self._count,
                lambda: (*self._calibrator.take_warnings(), *book.take_warnings()),
            )
        if selection.dropped_tokens and request.budget_tokens is None:
            selection = replace(selection, warnings=(*selection.warnings, *self._room.few(budget)))
        if request.kv is not None:  # one order for all questions, so that the same spans are compressed once
            selection = replace(selection, order=())
        if selector == selecting.EVERYTHING:
            prompt_tokens = len(self._frame.before) + selection.tokens + behind
            self._room.check_prompt(reach(request.kv, prompt_tokens, behind), request.max_new_tokens)
            said = self._room.passed(selection.tokens, request.budget_tokens)
            selection = replace(selection, warnings=(*selection.warnings, *said))
        return selection

    def _check(self, request: Request) -> int:
        """The tokens of text to select, after what can be refused before any work is done."""
        if not values.text("question", request.question).strip():
            raise EmptyInput("the question is empty.")
        asked, whole = self._count(request.question), request.selector == selecting.EVERYTHING
        return self._room.budget(asked, request.budget_tokens, request.max_new_tokens, whole)

    def _behind(self, question: str) -> int:
        """The tokens of a prompt that follow its text."""
        return len(self._frame.middle) + self._count(question) + len(self._frame.after)

    def _count(self, text: str) -> int:
        return len(self._tokens.plain(text))

    def _report(self, progress: bool | Progress) -> Progress | None:
        return listener(progress) or self._progress
