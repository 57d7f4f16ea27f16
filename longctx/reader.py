"""Compile, select, ask, stream: five calls in a row and a trace around each.

Owns the order of the stages and what is handed to whom. Knows no method: splitters and selectors are named by strings or
passed as objects, and only scores and spans come back.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from longctx import cut, plugins
from longctx.backend.decode import decode
from longctx.backend.model import Loaded, from_pretrained, wrap
from longctx.backend.probe import Probe
from longctx.backend.tokens import Tokens
from longctx.cite import cite
from longctx.compiled import CompiledDocument, Memory
from longctx.errors import BadOption, DoesNotFit, EmptyInput, Interrupted
from longctx.protocols import Progress, Selector
from longctx.questions import whole_document
from longctx.resources import Calibrator, Encoders
from longctx.segments import group
from longctx.types import Answer, Document, EncodedDocument, Event, SelectedSpan, Selection, Step, Unit

Source = Document | Sequence[Document] | CompiledDocument

SEGMENT_TOKENS = 256
MEMORY_BYTES = 512 * 2**20
NOTHING = "The text says nothing about this."


class Reader:
    """A model that reads documents longer than its window. Made from a name or around a loaded model.

    ``encoder`` names the sentence encoder ("auto": the embedded one where it is installed; None: none). ``calibration`` is
    "auto" (made on first use and kept in the cache folder), None, or a Calibration. ``segment_memory_bytes`` bounds the
    keys and values of segments that a compiled document keeps for later questions.
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
        progress: Progress | None = None,
    ) -> None:
        if segment_tokens < 1 or segment_memory_bytes < 0:
            raise BadOption(
                f"segment_tokens={segment_tokens} must be positive and segment_memory_bytes={segment_memory_bytes} not negative."
            )
        self._loaded: Loaded = model if isinstance(model, Loaded) else wrap(model, tokenizer)
        self._tokens = Tokens(self._loaded.tokenizer)
        self._frame = self._tokens.frame()
        self._splitter = plugins.resolve("splitters", splitter)
        self._encoders = Encoders(encoder)
        self._calibrator = Calibrator(self._loaded, calibration)
        self._segment_tokens, self._memory_bytes, self._progress = segment_tokens, segment_memory_bytes, progress

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, dtype: Any = "auto", device: str = "auto", progress: Progress | None = None, **options: Any
    ) -> Reader:
        """A reader for a hub id, a local folder or ``"embedded"``. Raises ModelError when it cannot be loaded."""
        loaded = from_pretrained(name, dtype=dtype, device=device, progress=progress)
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

    @cached_property
    def _probe(self) -> Probe:
        return Probe(self._loaded.model, self._tokens, self._calibrator.fingerprint)

    def compile(self, documents: Source, *, progress: bool | Progress = False) -> CompiledDocument:
        """The documents tokenised, cut into units and indexed, and their segments read as far as memory allows.

        Every later question is answered from this work. Raises EmptyInput for a document without text.
        """
        book = self._index(documents, self._report(progress))
        per_token = self._probe.bytes_per_token
        if book.tokens * per_token <= self._memory_bytes:
            for _ in book.read(range(len(book.segments))):
                pass
        if book.can_embed:
            book.vectors()
        return book

    def select(
        self,
        documents: Source,
        question: str,
        *,
        budget_tokens: int = 2048,
        selector: str | Selector = "auto",
        progress: bool | Progress = False,
    ) -> Selection:
        """The spans worth reading for ``question``: verbatim, in document order, within ``budget_tokens``."""
        report = self._report(progress)
        self._check(question, budget_tokens, 0)
        return self._select(self._index(documents, report), question, budget_tokens, selector, report)

    def ask(
        self,
        documents: Source,
        question: str,
        *,
        budget_tokens: int = 2048,
        max_new_tokens: int = 128,
        selector: str | Selector = "auto",
        temperature: float = 0.0,
        seed: int | None = None,
        progress: bool | Progress = False,
    ) -> Answer:
        """What the model says to ``question`` after reading the spans selected for it, with citations into the source."""
        report = self._report(progress)
        return self._answer(
            documents, question, budget_tokens, max_new_tokens, selector, temperature, seed, report, lambda text: None
        )

    def stream(
        self,
        documents: Source,
        question: str,
        *,
        budget_tokens: int = 2048,
        max_new_tokens: int = 128,
        selector: str | Selector = "auto",
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Iterator[Event]:
        """The same as ``ask``, as it happens: progress and token events, and the answer last.

        Work stops within one batch when the caller stops listening.
        """
        events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        stopped = threading.Event()

        def report(stage: str, done: int, total: int) -> None:
            if stopped.is_set():
                raise Interrupted("the stream was closed before the answer was complete.")
            events.put(Event("progress", stage, done, total))

        def token(text: str) -> None:
            if stopped.is_set():
                raise Interrupted("the stream was closed before the answer was complete.")
            events.put(Event("token", text))

        def work() -> None:
            try:
                answer = self._answer(
                    documents, question, budget_tokens, max_new_tokens, selector, temperature, seed, report, token
                )
                events.put(Event("answer", answer.text, answer=answer))
            except BaseException as error:  # noqa: BLE001 - carried to the caller's thread and raised there
                events.put(error)

        worker = threading.Thread(target=work, name="longctx-stream", daemon=True)
        worker.start()
        try:
            while True:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if event.kind == "answer":
                    return
        finally:
            stopped.set()
            worker.join()

    def _answer(
        self,
        documents: Source,
        question: str,
        budget_tokens: int,
        max_new_tokens: int,
        selector: str | Selector,
        temperature: float,
        seed: int | None,
        report: Progress | None,
        emit: Callable[[str], None],
    ) -> Answer:
        started = time.perf_counter()
        if temperature < 0 or max_new_tokens < 1:
            raise BadOption(f"temperature={temperature} must not be negative and max_new_tokens={max_new_tokens} at least 1.")
        self._check(question, budget_tokens, max_new_tokens)
        book = self._index(documents, report)
        compiled = time.perf_counter()
        selection = self._select(book, question, budget_tokens, selector, report)
        selected = time.perf_counter()
        prompt = self._prompt(selection.text, question)
        text, new = NOTHING, 0
        if selection.spans:
            text, new = self._say(prompt, max_new_tokens, temperature, seed, report, emit)
        said = time.perf_counter()
        citations = cite(text, question, book.documents, selection.spans, book.index.weight) if selection.spans else ()
        ended = time.perf_counter()
        usage = {
            "document_tokens": book.tokens,
            "selected_tokens": selection.tokens,
            "dropped_tokens": selection.dropped_tokens,
            "selection_tokens_read": selection.tokens_read,
            "prompt_tokens": len(prompt) if selection.spans else 0,
            "new_tokens": new,
        }
        timings = {
            "compile_seconds": compiled - started,
            "select_seconds": selected - compiled,
            "decode_seconds": said - selected,
            "cite_seconds": ended - said,
            "total_seconds": ended - started,
        }
        steps = (
            Step("compile", timings["compile_seconds"], {"units": len(book.units), "segments": len(book.segments)}),
            *selection.trace,
            Step("decode", timings["decode_seconds"], {"prompt_tokens": usage["prompt_tokens"], "new_tokens": new}),
            Step("cite", timings["cite_seconds"], {"citations": len(citations)}),
        )
        return Answer(text, citations, selection, usage, timings, "approximate", selection.warnings, steps)

    def _select(
        self, book: CompiledDocument, question: str, budget_tokens: int, selector: str | Selector, report: Progress | None
    ) -> Selection:
        started = time.perf_counter()
        name = selector if isinstance(selector, str) else type(selector).__name__
        warnings = [*book.warnings, *whole_document(question)]
        if name == "all":
            return self._everything(book, budget_tokens, None, started, name, warnings)
        method = plugins.resolve("selectors", selector)
        if book.tokens <= budget_tokens and not method.baseline:
            whole = self._everything(book, budget_tokens, budget_tokens, started, name, warnings)
            if whole.spans:
                return whole
        book.progress = report
        scores = method.score(question, book, budget_tokens)
        scored = time.perf_counter()
        warnings += [*scores.warnings, *self._calibrator.take_warnings()]
        spans: tuple[SelectedSpan, ...] = ()
        text, tokens = "", 0
        if scores.relevant:
            spans, text, tokens = cut.cut(book.documents, book.units, scores.values, budget_tokens, self._count)
        else:
            warnings.append("nothing in the text is related to the question: no span was selected.")
        if scores.relevant and not spans:
            raise DoesNotFit(
                f"no unit fits a budget of {budget_tokens} tokens; the smallest has "
                f"{min(unit.tokens for unit in book.units)}. Raise the budget, or compile with a smaller splitter cap."
            )
        ended = time.perf_counter()
        steps = (
            Step("select", scored - started, {"selector": name, "tokens_read": scores.tokens_read, **scores.facts}),
            Step("cut", ended - scored, {"budget_tokens": budget_tokens, "tokens": tokens, "spans": len(spans)}),
        )
        return Selection(
            spans=spans,
            text=text,
            tokens=tokens,
            dropped_tokens=book.tokens - _kept_tokens(book, spans),
            tokens_read=scores.tokens_read,
            seconds=ended - started,
            selector=name,
            relevant=scores.relevant,
            warnings=tuple(warnings),
            trace=steps,
            profile=cut.profile(book.documents, book.units, scores.values),
        )

    def _everything(
        self, book: CompiledDocument, budget_tokens: int, limit: int | None, started: float, name: str, warnings: list[str]
    ) -> Selection:
        """The whole text as one selection; without spans when ``limit`` is given and the text passes it."""
        spans = tuple(SelectedSpan(d.id, 0, len(d.text), d.page_at(0), 0.0) for d in book.documents)
        text = cut.joined(book.documents, spans)
        tokens = self._count(text)
        if limit is not None and tokens > limit:
            spans, text, tokens = (), "", 0
        seconds = time.perf_counter() - started
        step = Step("select", seconds, {"selector": name, "tokens_read": 0, "whole": True})
        return Selection(spans, text, tokens, 0, 0, seconds, name, True, tuple(warnings), (step,))

    def _say(
        self,
        prompt: list[int],
        max_new_tokens: int,
        temperature: float,
        seed: int | None,
        report: Progress | None,
        emit: Callable[[str], None],
    ) -> tuple[str, int]:
        """The model's answer and its tokens; text is handed to ``emit`` as soon as its characters are whole."""
        self._fits(len(prompt), max_new_tokens)
        stops = self._tokens.stops(getattr(self.model.generation_config, "eos_token_id", None))
        ids: list[int] = []
        shown = ""
        for token in decode(self.model, prompt, max_new_tokens, stops, temperature, seed, report):
            ids.append(token)
            text = self._tokens.decode(ids)
            if text.startswith(shown) and not text.endswith("\ufffd"):
                emit(text[len(shown) :])
                shown = text
        return self._tokens.decode(ids).strip(), len(ids)

    def _prompt(self, text: str, question: str) -> list[int]:
        frame = self._frame
        return [*frame.before, *self._tokens.plain(text), *frame.middle, *self._tokens.plain(question), *frame.after]

    def _fits(self, prompt_tokens: int, max_new_tokens: int) -> None:
        if prompt_tokens + max_new_tokens > self.window:
            raise DoesNotFit(
                f"the prompt has {prompt_tokens} tokens and {max_new_tokens} new ones are asked for, but the model's window is "
                f"{self.window}. Lower budget_tokens or max_new_tokens, or choose a selector other than 'all'."
            )

    def _check(self, question: str, budget_tokens: int, max_new_tokens: int) -> None:
        """What can be refused before any work is done."""
        if not question.strip():
            raise EmptyInput("the question is empty.")
        if budget_tokens < 1:
            raise BadOption(f"budget_tokens={budget_tokens} must be at least 1.")
        fixed = self._frame.tokens + self._count(question)
        longest = self.window - fixed - max_new_tokens
        if longest < 1:
            raise DoesNotFit(
                f"question and instructions need {fixed} tokens and {max_new_tokens} new ones are asked for, but the model's "
                f"window is {self.window}. Shorten the question: documents are selected from, the question never is."
            )
        if budget_tokens > longest:
            raise DoesNotFit(
                f"budget_tokens={budget_tokens} leaves no room: with the question ({fixed} tokens) and {max_new_tokens} new "
                f"tokens the window of {self.window} holds at most {longest}."
            )
        if fixed + self._segment_tokens > self.window:
            raise DoesNotFit(
                f"a segment of {self._segment_tokens} tokens and the question ({fixed}) pass the window of {self.window}. "
                f"Make the reader with segment_tokens={max(1, self.window - fixed)} or less."
            )

    def _index(self, documents: Source, report: Progress | None) -> CompiledDocument:
        """Tokens, units and segments of ``documents``; what was compiled before is returned as it is."""
        if isinstance(documents, CompiledDocument):
            return documents
        sources = [documents] if isinstance(documents, Document) else list(documents)
        if not sources or not all(isinstance(source, Document) for source in sources):
            raise BadOption("documents must be a Document, a list of them or a CompiledDocument; longctx.read makes them.")
        encoded, warnings = [], []
        for done, source in enumerate(sources):
            if not source.text.strip():
                raise EmptyInput(f"document {source.id!r} has no text ({len(source.text)} characters of white space).")
            encoded.append(self._tokens.encode(source))
            warnings += [f"{source.id}: {warning}" for warning in (*source.warnings, *self._splitter.warnings(encoded[-1]))]
            if report is not None:
                report("tokenising", done + 1, len(sources))
        units = _units(encoded, [self._splitter.split(e) for e in encoded])
        return CompiledDocument(
            encoded,
            units,
            group(units, self._segment_tokens),
            lambda: self._probe,
            lambda: self._calibrator(self._probe, report),
            self._encoders,
            Memory(self._memory_bytes),
            tuple(warnings),
        )

    def _count(self, text: str) -> int:
        return len(self._tokens.plain(text))

    def _report(self, progress: bool | Progress) -> Progress | None:
        if progress is True:
            from longctx.console import bar

            return bar()
        return progress or self._progress


def _units(encoded: Sequence[EncodedDocument], pieces: Sequence[Sequence[Any]]) -> list[Unit]:
    units: list[Unit] = []
    for number, (document, spans) in enumerate(zip(encoded, pieces, strict=True)):
        for span in spans:
            first, last = document.token_at(span.start), document.token_at(span.end)
            if last > first:  # characters that make no token of their own belong to a neighbour's tokens
                units.append(Unit(len(units), number, span.start, span.end, first, last, span.context))
    return units


def _kept_tokens(book: CompiledDocument, spans: Sequence[SelectedSpan]) -> int:
    by_id = {e.document.id: e for e in book.encoded}
    return sum(by_id[span.document_id].count(span.start, span.end) for span in spans)
