"""``longctx ask`` and ``longctx select``: files and a question in, an answer or the chosen spans out.

Owns the order of checks (what is cheap to refuse is refused before a model is loaded) and how results are shown.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longctx import plugins
from longctx.commands.screen import Screen, one_line
from longctx.commands.settings import Settings
from longctx.commands.sources import Cached, Sources, find
from longctx.errors import EmptyInput, LongctxError, UsageError
from longctx.store.manifest import check_words
from longctx.types import Answer, Citation, Document, SelectedSpan, Selection

if TYPE_CHECKING:
    from longctx.reader import Reader

_QUOTE_CHARS = 240
_SHOWN = 3  # passages in place of citations


def ask(words: Sequence[str], settings: Settings, screen: Screen, plot: Path | None, cached: Cached) -> None:
    """Answer the last of ``words`` from the files before it."""
    sources, question = _asked(words, settings, plot, cached)
    reader = open_reader(settings, screen)
    progress = screen.progress
    shown = _Streamed(screen)
    answer: Answer | None = None
    for event in reader.stream(
        sources.open(reader, settings, screen, cached),
        question,
        budget_tokens=settings.budget,
        max_new_tokens=settings.max_new_tokens,
        selector=settings.selector,
        drafters=settings.stack(),
        controller=settings.controller,
        kv=settings.policy(),
        allow_partial=settings.kv_partial,
        temperature=settings.temperature,
        seed=settings.seed,
    ):
        if event.kind == "progress":
            progress(event.text, event.done, event.total)
        elif event.kind == "token":
            shown.add(event.text)
        answer = event.answer
    assert answer is not None
    _trim(cached, settings, screen)
    if not screen.json:
        shown.end(answer.text)
    if plot is not None:
        _plot(plot, sources.documents, answer.selection, question, screen)
    if screen.json:
        screen.result(answer.as_dict())
        return
    for number, citation in enumerate(answer.citations, 1):
        screen.line(_citation(number, citation))
    if not answer.citations:
        _unsupported(screen, question, answer.selection, sources.documents)
    _summary(screen, answer)


def select(words: Sequence[str], settings: Settings, screen: Screen, plot: Path | None, cached: Cached) -> None:
    """Show the verbatim spans chosen for the last of ``words``."""
    sources, question = _asked(words, settings, plot, cached)
    reader = open_reader(settings, screen)
    selection = reader.select(
        sources.open(reader, settings, screen, cached),
        question,
        budget_tokens=settings.budget,
        selector=settings.selector,
        progress=screen.progress,
    )
    _trim(cached, settings, screen)
    if plot is not None:
        _plot(plot, sources.documents, selection, question, screen)
    if screen.json:
        screen.result(selection.as_dict())
        return
    texts = {document.id: document.text for document in sources.documents}
    for span in selection.spans:
        screen.line(f"--- {_place(span)} score {span.score:.3g}")
        screen.line(texts[span.document_id][span.start : span.end].strip("\r\n"))
    screen.note(
        f"kept {selection.tokens:,} tokens, left out {selection.dropped_tokens:,} | {selection.selector} read "
        f"{selection.tokens_read:,} | {selection.seconds:.1f} s"
    )
    screen.warn(selection.warnings)


def ask_many(words: Sequence[str], questions: Path, out: Path, settings: Settings, screen: Screen) -> None:
    """Answer every question of a file, one row each; what is wrong is raised before a model is loaded."""
    pipeline = importlib.import_module("longctx.pipelines.document_qa")
    check(settings)
    listed = pipeline.read_questions(questions)
    for path in (questions, *map(Path, words)):
        if out.exists() and path.exists() and out.samefile(path):
            raise UsageError(f"--out {str(out)!r} is one of the files to read.")
    sources = find(words, settings)
    configuration = dataclasses.asdict(settings) | {"budget": settings.usual_budget}
    # they change what is kept, how fast it goes and whether there is an answer, never what it is
    for key in ("segment_memory_bytes", "cache_bytes", "drafters", "controller", "kv_partial", "limits"):
        del configuration[key]
    outcome = pipeline.run(
        lambda: open_reader(settings, screen),
        sources.documents,
        listed,
        out,
        configuration,
        stored=sources.stored,
        progress=screen.progress,
        budget_tokens=settings.budget,
        max_new_tokens=settings.max_new_tokens,
        selector=settings.selector,
        drafters=settings.stack(),
        controller=settings.controller,
        kv=settings.policy(),
        allow_partial=settings.kv_partial,
        temperature=settings.temperature,
        seed=settings.seed,
    )
    if screen.json:
        screen.result({**dataclasses.asdict(outcome), "out": str(out)})
    else:
        screen.line(f"{out}: {outcome.rows} rows, {outcome.skipped} of them from before, {outcome.failed} failed")
    if outcome.failed:
        raise LongctxError(
            f"{outcome.failed} questions could not be answered; their rows in {out} say why. They are kept: another "
            f"--out asks them again."
        )


def cached(wanted: bool, segment_kv: str) -> Cached:
    """What was asked of the cache. Raises UsageError for keys and values without it, BadOption for no place."""
    if segment_kv != "none" and not wanted:
        raise UsageError("--segment-kv goes with --cache; `longctx compile` stores a document in a place of its own.")
    check_words(segment_kv, "exact")
    return Cached(wanted, segment_kv)


def open_reader(settings: Settings, screen: Screen) -> Reader:
    """The reader that ``settings`` describe, its model loaded."""
    from longctx.reader import Reader

    return Reader.from_pretrained(
        settings.model,
        dtype=settings.dtype,
        device=settings.device,
        progress=screen.progress,
        **settings.reader_options(),
    )


def check(settings: Settings) -> None:
    """What is wrong with ``settings`` whatever the model. Raises UsageError."""
    if settings.selector != "all":
        plugins.load("selectors", settings.selector)
    plugins.load("splitters", settings.splitter)
    plugins.load("kv", settings.policy() or "full")
    check_drafters(settings)


def check_drafters(settings: Settings) -> None:
    """Raises UsageError for a drafter or a controller there is not."""
    plugins.load("controllers", settings.controller)
    stack = settings.stack()
    for name in () if stack in ("auto", plugins.NONE) else stack.split("+"):
        plugins.load("drafters", name.strip())


def _asked(words: Sequence[str], settings: Settings, plot: Path | None, cached: Cached) -> tuple[Sources, str]:
    """What is asked about and the question, after every check that needs no model."""
    if len(words) < 2:
        raise UsageError('name one or more files and then the question: longctx ask FILE... "QUESTION".')
    *paths, question = words
    if not question.strip():
        raise EmptyInput("the question is empty.")
    if _is_file(question):
        raise UsageError(f"the last word must be the question, but {question!r} is a file.")
    check(settings)
    if plot is not None:
        from longctx import plotting

        plotting.check(plot)
    sources = find(paths, settings)
    if cached.wanted and sources.stored is not None:
        raise UsageError(f"--cache is for files: {str(sources.stored)!r} is compiled already.")
    return sources, question


def _trim(cached: Cached, settings: Settings, screen: Screen) -> None:
    """After the answer, so that nothing leaves the cache that the answer still needs."""
    if cached.wanted:
        from longctx.commands.cache import trim

        trim(settings, screen)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a name can be, or with characters that no name has
        return False


def read_documents(paths: Sequence[str], settings: Settings) -> list[Document]:
    from longctx.documents.reader import read

    return read(list(paths), limits=settings.reading_limits())


class _Streamed:
    """Tokens on stdout as they come, without the white space before the first and after the last."""

    def __init__(self, screen: Screen) -> None:
        self._screen, self._raw, self._shown = screen, "", 0

    def add(self, text: str) -> None:
        self._raw += text
        whole = self._raw.strip()
        if not self._screen.json:
            self._screen.piece(whole[self._shown :])
        self._shown = len(whole)

    def end(self, answer: str) -> None:
        """What was not streamed of ``answer``: all of it, or its last characters."""
        self._screen.line(answer[self._shown :])


def _citation(number: int, citation: Citation) -> str:
    quote = one_line(citation.quote, _QUOTE_CHARS)
    return f'[{number}] {_place(citation)} "{quote}" score {citation.score:.2f}'


def _unsupported(screen: Screen, question: str, selection: Selection, documents: Sequence[Document]) -> None:
    """Where to look in place of citations: the passages that scored highest of those that the model read.

    Of a long one the sentence with the most words of the question is shown. None where the model read everything, which
    no score chose.
    """
    from longctx.cite import nearest

    strongest = sorted(selection.as_read, key=lambda span: -span.score)[:_SHOWN] if selection.dropped_tokens else []
    if strongest:
        screen.line("no sentence that was read holds these words; the passages that scored highest:")
    texts = {document.id: document.text for document in documents}
    for span in strongest:
        text = texts[span.document_id][span.start : span.end]
        start, end = nearest(question, text) if len(text) > _QUOTE_CHARS else (0, len(text))
        left = "… " if text[:start].strip() else ""
        right = " …" if text[end:].strip() else ""
        screen.line(f'- {_place(span)} "{left}{one_line(text[start:end], _QUOTE_CHARS)}{right}"')


def _place(span: Citation | SelectedSpan) -> str:
    page = f" p.{span.page}" if span.page is not None else ""
    return f"{span.document_id}{page} chars {span.start}-{span.end}"


def _summary(screen: Screen, answer: Answer) -> None:
    kept, total = answer.selection.tokens, answer.usage["document_tokens"]
    spans, read = len(answer.selection.spans), len(answer.selection.as_read)
    part = f", read {read} of {spans} spans" if read < spans else ""
    screen.note(
        f"kept {kept:,} of {total:,} tokens ({100.0 * kept / total:.1f} %){part} | guarantee: {answer.guarantee} | "
        f"{answer.timings['total_seconds']:.1f} s"
    )
    if answer.finish_reason == "length":
        screen.note(f"cut off after {answer.usage['new_tokens']} tokens: --max-new-tokens lets it go on")
    screen.warn(answer.warnings)


def _plot(path: Path, documents: Sequence[Document], selection: Selection, question: str, screen: Screen) -> None:
    from longctx import plotting

    plotting.save(path, documents, selection, question)
    screen.note(f"where the model looked: {path}")
