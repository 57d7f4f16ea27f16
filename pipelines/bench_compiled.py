"""``longctx bench compiled``: what a document costs once, and what every question costs after that.

Owns the clock and the row. Selecting is timed, without an answer. Compiling, loading and appending have a process each.
The files of the document are made in a temporary folder and removed.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import longctx
from longctx.errors import BadOption, UsageError

from . import processes, python_reference
from .rows import here_and_now

_LEAST = 2  # questions
_APPENDED = 0.01  # of the text: it comes to the document when all else was measured
_PAGE = 4096
_TRIAL = 2000  # characters
_ROOM = 8 * 2**30  # of segments kept in memory: a document that is compiled there is read once


def run_compiled(
    model: str,
    out: Path,
    *,
    data: Path | None = None,
    tokens: int = 0,
    questions: int = 11,
    budget_tokens: int = 2048,
    dtype: str = "auto",
    segment_kv: str = "disk",
    segment_form: str = "exact",
    selector: str = "auto",
    straight: bool = False,
) -> Path:
    """Append one row to ``out``/compiled.jsonl and return that file.

    The text is that of the file ``data`` (None: the Python language reference), cut to about ``tokens`` tokens (0: all
    of it). ``questions`` are asked: the first with everything still to do, the others behind it, and all of them again
    by another process that has model and encoder and loads the stored document, and the first by one more when the
    system has forgotten its files (None where it cannot be asked to). Then the last hundredth of the text is appended
    to the stored document.
    The document is compiled in memory, with room for all its segments, and saved when it was asked; with ``straight``
    it is compiled into its files, with the memory a reader takes by default, and asked as they hold it: for texts
    that no memory holds. ``peak_bytes`` of the row is the most memory of the process that compiles and of the one that
    loads and asks, above what it had with model and encoder loaded.
    Raises UsageError for a text too short to ask so many about.
    """
    if questions < _LEAST or budget_tokens < 1:
        raise BadOption(
            f"questions={questions} must be at least {_LEAST}, for some are asked behind the first, and "
            f"budget_tokens={budget_tokens} at least 1."
        )
    text = python_reference.text() if data is None else longctx.read(data).text
    reader = longctx.Reader.from_pretrained(model, dtype=dtype)
    if tokens:
        text = text[: _chars(reader, text, tokens)]
    longer, text = text, text[: int(len(text) / (1 + _APPENDED))]
    asked, threads = questions_about(text, questions), torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="longctx-bench-") as folder:
        stored = Path(folder) / "book.lctx"
        words = (segment_kv, segment_form, budget_tokens, selector, straight, threads)
        run = _Run(model, dtype, str(stored), *words)
        # what is wrong with the words is said now, and what is done once for a model is not counted
        short = run.compiled(reader, text[:_TRIAL], str(Path(folder) / "trial.lctx"))
        reader.select(short, asked[0], budget_tokens=budget_tokens, selector=selector)
        fresh = run.call(compile_and_ask, text, asked)
        loaded = run.call(load_and_ask, asked)
        written = sum(file.stat().st_size for file in stored.rglob("*") if file.is_file())
        cold = round(run.call(load_and_ask, asked[:1])["first"], 3) if _forgotten(stored) else None
        appending = run.call(append, longer)
    shares = [_shared(a, b) for a, b in zip(fresh["spans"], loaded["spans"], strict=True)]
    later = statistics.median(fresh["later"])
    row = {
        "bench": "compiled",
        "model": Path(model).name,
        "fingerprint": reader.fingerprint[:16],
        "dtype": str(reader.model.dtype).removeprefix("torch."),
        "tokens": fresh["tokens"],
        "selector": selector,
        "budget": budget_tokens,
        "segment_kv": segment_kv,
        "segment_form": segment_form,
        "straight": straight,
        "questions": questions,
        "compile_and_first_seconds": round(fresh["first"], 3),
        "later_seconds": {"median": later, "least": min(fresh["later"]), "most": max(fresh["later"])},
        "save_seconds": round(fresh["saving"], 3),
        "loaded_first_seconds": round(loaded["first"], 3),
        "loaded_later_seconds": statistics.median(loaded["later"]),
        "cold_first_seconds": cold,
        "append_seconds": round(appending, 3),
        "append_share": round(appending / (fresh["first"] + fresh["saving"]), 4),
        "times_cheaper": round(fresh["first"] / later, 1),
        "bytes_per_token": round(written / fresh["tokens"], 1),
        "loaded_bytes": fresh["loaded_bytes"],
        "peak_bytes": {"compile": fresh["peak_bytes"], "ask": loaded["peak_bytes"]},
        "same_spans": sum(share == 1.0 for share in shares),
        "kept_shared": round(statistics.mean(shares), 4),
        "threads": threads,
        "longctx": longctx.__version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
        **here_and_now(),
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / "compiled.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return path


def questions_about(text: str, count: int) -> list[str]:
    """``count`` questions, each about words that stand at another place of ``text``, evenly spread."""
    words = text.split()
    if len(words) < 20 * count:
        raise UsageError(f"the text has {len(words)} words: too few to ask {count} questions about.")
    starts = [(2 * i + 1) * len(words) // (2 * count) for i in range(count)]
    return [f"What is said about {' '.join(words[at : at + 6])}?" for at in starts]


def compile_and_ask(how: Mapping[str, Any], text: str, asked: Sequence[str]) -> dict[str, Any]:
    """In this process: compile ``text`` and ask about it; the files of the document hold it afterwards."""
    run = _Run(**how)
    reader = run.reader()
    loaded = _loaded(reader)
    started = time.perf_counter()
    book = run.compiled(reader, text, run.stored if run.straight else None)
    found = run.all_asked(reader, book, asked, started)
    started = time.perf_counter()
    if not run.straight:
        book.save(run.stored, segment_kv=run.segment_kv, segment_form=run.segment_form)
    saving = time.perf_counter() - started
    return found | {"tokens": book.tokens, "saving": saving, **_above(loaded)}


def load_and_ask(how: Mapping[str, Any], asked: Sequence[str]) -> dict[str, Any]:
    """In this process: load the document and ask; the first question is timed from the call of ``load``."""
    run = _Run(**how)
    reader = run.reader()
    loaded = _loaded(reader)
    started = time.perf_counter()
    book = reader.load(run.stored, verify="lazy")
    return run.all_asked(reader, book, asked, started) | _above(loaded)


def append(how: Mapping[str, Any], text: str) -> float:
    """In this process: the seconds until the stored document holds ``text``, which is its own and more."""
    run = _Run(**how)
    reader = run.reader()
    _loaded(reader)
    started = time.perf_counter()
    run.compiled(reader, text, run.stored)
    return time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class _Run:
    """What every process of a row is told."""

    model: str
    dtype: str
    stored: str
    segment_kv: str
    segment_form: str
    budget_tokens: int
    selector: str
    straight: bool
    threads: int

    def reader(self) -> longctx.Reader:
        torch.set_num_threads(self.threads)
        room: dict[str, Any] = {} if self.straight else {"segment_memory_bytes": _ROOM}
        return longctx.Reader.from_pretrained(self.model, dtype=self.dtype, **room)

    def compiled(self, reader: longctx.Reader, text: str, path: str | None) -> longctx.CompiledDocument:
        document = longctx.Document.from_text(text, "text")
        if path is None:
            return reader.compile(document)
        return reader.compile(document, path=path, segment_kv=self.segment_kv, segment_form=self.segment_form)

    def all_asked(self, reader: longctx.Reader, book: Any, asked: Sequence[str], started: float) -> dict[str, Any]:
        """The spans of every question, the seconds from ``started`` to the first's, and those of each of the others."""
        spans, at = [], [started]
        for question in asked:
            selection = reader.select(book, question, budget_tokens=self.budget_tokens, selector=self.selector)
            at.append(time.perf_counter())
            spans.append([[span.start, span.end] for span in selection.spans])
        seconds = [done - begun for begun, done in pairwise(at)]
        return {"first": seconds[0], "later": seconds[1:], "spans": spans}

    def call(self, function: Callable[..., Any], *given: Any) -> Any:
        return processes.call(__name__, function.__name__, [asdict(self), *given])


def _loaded(reader: longctx.Reader) -> int | None:
    """The bytes of this process with every weight of the model in them; None where the system does not tell.

    The encoder and what is imported with it are there afterwards too: they are not the document's.
    """
    reader.compile(longctx.Document.from_text("One."))
    for weight in reader.model.parameters():
        weight.view(-1)[:: _PAGE // weight.itemsize].sum()  # a file that is mapped has what was read of it
    return processes.memory(reset=True)


def _above(loaded: int | None) -> dict[str, int | None]:
    peak = None if loaded is None else (processes.memory() or 0) - loaded
    return {"loaded_bytes": loaded, "peak_bytes": peak}


def _forgotten(folder: Path) -> bool:
    """Whether the system could be told to drop the pages that it holds of the files below ``folder``."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())  # what is not written yet would stay
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _shared(own: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """The share of the characters of ``own`` that are in ``other`` too."""
    kept = {at for start, end in own for at in range(start, end)}
    found = {at for start, end in other for at in range(start, end)}
    return len(kept & found) / len(kept) if kept else float(not found)


def _chars(reader: Any, text: str, tokens: int) -> int:
    """About how many characters of ``text`` make ``tokens`` tokens, by its first tenth."""
    piece = text[: max(1000, len(text) // 10)]
    return int(tokens * len(piece) / max(1, len(reader.tokenizer(piece, add_special_tokens=False)["input_ids"])))
