"""``longctx bench compiled``: what a document costs once, and what every question costs after that.

Owns the clock and the row. Selecting is timed, without an answer; whatever is loaded from disk is asked by a process of
its own. The files of the document are made in a temporary folder and removed.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import longctx
from longctx.errors import BadOption, UsageError

from . import processes, python_reference
from .rows import here_and_now

_LEAST = 2  # questions
_APPENDED = 0.01  # of the text: it comes to the document when all else was measured
_MEMORY = 8 * 2**30  # of segments kept in this process: a document is compiled once, whatever its size


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
) -> Path:
    """Append one row to ``out``/compiled.jsonl and return that file.

    The text is that of the file ``data`` (None: the Python language reference), cut to about ``tokens`` tokens (0: all
    of it). ``questions`` are asked: the first with everything still to do, the others behind it, and all of them again
    by another process that loads the stored document, and the first by one more when the system has forgotten its
    files (None where it cannot be asked to). The last hundredth of the text is appended to the stored document then.
    Raises UsageError for a text too short to ask so many about.
    """
    if questions < _LEAST or budget_tokens < 1:
        raise BadOption(
            f"questions={questions} must be at least {_LEAST}, for some are asked behind the first, and "
            f"budget_tokens={budget_tokens} at least 1."
        )
    text = python_reference.text() if data is None else longctx.read(data).text
    reader = longctx.Reader.from_pretrained(model, dtype=dtype, segment_memory_bytes=_MEMORY)
    if tokens:
        text = text[: _chars(reader, text, tokens)]
    longer, text = text, text[: int(len(text) / (1 + _APPENDED))]
    asked = questions_about(text, questions)
    with tempfile.TemporaryDirectory(prefix="longctx-bench-") as folder:
        stored, trial = Path(folder) / "book.lctx", Path(folder) / "trial.lctx"
        # what is wrong with the words is said now, and what is done once for a model is not counted
        reader.compile(longctx.Document.from_text("One."), path=trial, segment_kv=segment_kv, segment_form=segment_form)
        started = time.perf_counter()
        book = reader.compile(longctx.Document.from_text(text, "text"))
        first = reader.select(book, asked[0], budget_tokens=budget_tokens, selector=selector)
        compiled = time.perf_counter() - started
        later = [_asked(reader, book, question, budget_tokens, selector) for question in asked[1:]]
        started = time.perf_counter()
        book.save(stored, segment_kv=segment_kv, segment_form=segment_form)
        saving = time.perf_counter() - started
        loaded = _child(model, dtype, stored, asked, budget_tokens, selector)
        written = sum(file.stat().st_size for file in stored.rglob("*") if file.is_file())
        cold = _child(model, dtype, stored, asked[:1], budget_tokens, selector)["first"] if _forgotten(stored) else None
        given = [model, dtype, str(stored), longer, segment_kv, segment_form, torch.get_num_threads()]
        appending = processes.call(__name__, append.__name__, given)
        fresh = [_spans(first), *(spans for _, spans in later)]
    seconds = [taken for taken, _ in later]
    shares = [_shared(a, b) for a, b in zip(fresh, loaded["spans"], strict=True)]
    row = {
        "bench": "compiled",
        "model": Path(model).name,
        "fingerprint": reader.fingerprint[:16],
        "dtype": str(reader.model.dtype).removeprefix("torch."),
        "tokens": book.tokens,
        "selector": selector,
        "budget": budget_tokens,
        "segment_kv": segment_kv,
        "segment_form": segment_form,
        "questions": questions,
        "compile_and_first_seconds": round(compiled, 3),
        "later_seconds": {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)},
        "save_seconds": round(saving, 3),
        "loaded_first_seconds": round(loaded["first"], 3),
        "loaded_later_seconds": statistics.median(loaded["later"]),
        "cold_first_seconds": None if cold is None else round(cold, 3),
        "append_seconds": round(appending, 3),
        "append_share": round(appending / (compiled + saving), 4),
        "times_cheaper": round(compiled / statistics.median(seconds), 1),
        "bytes_per_token": round(written / book.tokens, 1),
        "same_spans": sum(share == 1.0 for share in shares),
        "kept_shared": round(statistics.mean(shares), 4),
        "threads": torch.get_num_threads(),
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


def load_and_ask(
    model: str, dtype: str, stored: str, asked: Sequence[str], budget_tokens: int, selector: str, threads: int
) -> dict[str, Any]:
    """In this process: load the document and ask; the first question is timed from the call of ``load``."""
    torch.set_num_threads(threads)
    reader = longctx.Reader.from_pretrained(model, dtype=dtype, segment_memory_bytes=_MEMORY)
    started = time.perf_counter()
    book = reader.load(stored, verify="lazy")
    selection = reader.select(book, asked[0], budget_tokens=budget_tokens, selector=selector)
    first = time.perf_counter() - started
    later = [_asked(reader, book, question, budget_tokens, selector) for question in asked[1:]]
    spans = [_spans(selection), *(found for _, found in later)]
    return {"first": first, "later": [taken for taken, _ in later], "spans": spans}


def append(model: str, dtype: str, stored: str, text: str, segment_kv: str, segment_form: str, threads: int) -> float:
    """In this process: the seconds until the stored document holds ``text``, which is its own and more."""
    torch.set_num_threads(threads)
    reader = longctx.Reader.from_pretrained(model, dtype=dtype, segment_memory_bytes=_MEMORY)
    document = longctx.Document.from_text(text, "text")
    started = time.perf_counter()
    reader.compile(document, path=stored, segment_kv=segment_kv, segment_form=segment_form)
    return time.perf_counter() - started


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


def _child(model: str, dtype: str, stored: Path, asked: Sequence[str], budget: int, selector: str) -> dict[str, Any]:
    given = [model, dtype, str(stored), list(asked), budget, selector, torch.get_num_threads()]
    found: dict[str, Any] = processes.call(__name__, load_and_ask.__name__, given)
    return found


def _asked(reader: Any, book: Any, question: str, budget: int, selector: str) -> tuple[float, list[list[int]]]:
    started = time.perf_counter()
    selection = reader.select(book, question, budget_tokens=budget, selector=selector)
    return time.perf_counter() - started, _spans(selection)


def _spans(selection: Any) -> list[list[int]]:
    return [[span.start, span.end] for span in selection.spans]


def _shared(own: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """The share of the characters of ``own`` that are in ``other`` too."""
    kept = {at for start, end in own for at in range(start, end)}
    found = {at for start, end in other for at in range(start, end)}
    return len(kept & found) / len(kept) if kept else float(not found)


def _chars(reader: Any, text: str, tokens: int) -> int:
    """About how many characters of ``text`` make ``tokens`` tokens, by its first tenth."""
    piece = text[: max(1000, len(text) // 10)]
    return int(tokens * len(piece) / max(1, len(reader.tokenizer(piece, add_special_tokens=False)["input_ids"])))
