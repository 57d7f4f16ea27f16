"""``longctx eval selection``: how much of a question's evidence each selector keeps within a budget of tokens.

Owns the grid and the rows. Works on the public face: one compiled document per model, every selector with the same
units, cut and budget. Rows are written as they are found and never made twice, so an interrupted run resumes.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import longctx
from longctx import Reader
from longctx.errors import ArtifactError, BadOption

from .rows import alone, differences, here_and_now, put, read
from .selection_report import write_report
from .selection_sets import Case, Question, cases, kept_share

FREE = (
    "random",
    "head",
    "bm25",
    "dense",
    "dense:bm25=1",
    "bm25:neighbours=0.5",
    "dense:neighbours=0.5",
    "dense:bm25=1,neighbours=0.5",
    "auto:model=false",
    "longheads",
)
CASCADE = ("auto",)
FULL = (
    "xl3m:signal=question_likelihood",
    "xl3m:signal=entropy",
    "xl3m:signal=gain",
    "xl3m:signal=contrast",
    "infiniretri",
)
PAPER = "infiniretri:compat=paper"
STORED = ("exact", "int8")
SETS = ("loogle", "qmsum", "xquad", "nq", "needles")
_MEMORY = 6 * 2**30  # every document's segments are kept while its questions are asked
_PAPER_TOKENS = 16_000


def run_selection(
    data: Path,
    model: str,
    out: Path,
    *,
    sets: Sequence[str] = SETS,
    budgets: Sequence[int] = (512, 1024, 2048),
    sample: int = 100,
    full_sample: int = 20,
    paper_sample: int = 0,
    seed: int = 7,
    needle_chars: int = 520_000,
    selectors: Sequence[str] = (),
    stored: str = "",
    quiet: bool = False,
) -> Path:
    """Append missing rows to ``out``/selection-MODEL.jsonl, write ``out``/selection.md and return the rows' file.

    ``sample`` questions of sets with one document; ``full_sample`` questions of each document for the selectors that
    read all of it for every question; ``paper_sample`` questions of each set for the released InfiniRetri scoring.
    ``selectors`` are asked instead of the usual ones, all questions each. With ``stored`` every document is compiled
    into files, its segments in that form ("exact" or "int8"), loaded again and asked then, of ``auto`` alone where
    ``selectors`` are not named.
    """
    if stored not in ("", *STORED):
        raise BadOption(f"stored={stored!r} must be one of {', '.join(STORED)}, or empty.")
    if stored and paper_sample:
        raise BadOption(
            f"paper_sample={paper_sample} reads texts without compiling them: leave it or stored={stored!r} out."
        )
    if stored:
        selectors = selectors or CASCADE
    reader = Reader.from_pretrained(model, segment_memory_bytes=_MEMORY)
    label = Path(model).name
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"selection-{label}.jsonl"
    base = _base(reader, label) | ({"stored": stored} if stored else {})
    done = {_key(row) for row in _held(path, base)}
    with alone(path), path.open("a", encoding="utf-8") as file:
        for case in cases(data, list(sets), seed, sample, needle_chars):
            with tempfile.TemporaryDirectory(prefix="longctx-eval-") as folder:
                for row in _case(reader, case, budgets, full_sample, selectors, done, base, folder, quiet):
                    file.write(json.dumps(row) + "\n")
                    file.flush()
        for row in _paper(reader, data, sets, budgets, paper_sample, seed, needle_chars, done, base, quiet):
            file.write(json.dumps(row) + "\n")
            file.flush()
    write_report(out, out / "selection.md")
    return path


def _case(
    reader: Reader,
    case: Case,
    budgets: Sequence[int],
    full_sample: int,
    selectors: Sequence[str],
    done: set[tuple[Any, ...]],
    base: dict[str, Any],
    folder: str,
    quiet: bool,
) -> Any:
    """Rows of one document."""
    digest = hashlib.sha256(case.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    book = None
    for number, question in enumerate(case.questions):
        wanted = [*FREE, *CASCADE, *(FULL if number < full_sample else ())]
        asked: dict[str, Any] = {}  # what the one pass took that all of FULL are read from
        together = sum(selector in FULL for selector in selectors or wanted) > 1
        for selector in selectors or wanted:
            row = {**base, "set": case.set, "document": case.name, "sha256": digest, "question": number}
            row["selector"] = selector
            # larger budgets first: a cascade then reads for the smaller ones nothing that it has not read
            missing = [b for b in sorted(budgets, reverse=True) if _key(row | {"budget": b}) not in done]
            if missing and book is None:
                started = time.perf_counter()
                book = _book(reader, case, base.get("stored"), folder)
                if not quiet:
                    _say(f"{case.name}: {book.tokens:,} tokens compiled in {time.perf_counter() - started:.0f} s")
            whole = book is not None and bool(missing) and book.tokens <= missing[0]  # kept whole: nothing was scored
            if missing and not whole and book is not None and selector in FULL and not asked and together:
                asked |= _ask(book, question.text)
            if selector.partition(":")[0] in CASCADE or whole:
                for budget in missing:
                    yield row | _measure(reader, book, question, selector, budget)[1]
            elif missing and book is not None:
                selection, found = _measure(reader, book, question, selector, missing[0])
                found |= {"together": asked} if asked and selector in FULL else {}
                yield row | found
                for budget in missing[1:]:
                    yield row | found | _kept(reader.recut(book, selection, budget), question) | {"budget": budget}
        if not quiet:
            _say(f"{case.name}: question {number + 1} of {len(case.questions)}")


def _ask(book: Any, question: str) -> dict[str, Any]:
    """What one pass over every segment took, which tells all that the selectors of FULL ask for one by one."""
    started, before = time.perf_counter(), book.spent()
    heads = book.probe.middle() if book.calibration is None else book.calibration.heads
    inquiry = book.probe.inquiry(question, heads=heads, likelihood=True, next_token=True)
    for _ in book.ask(range(len(book.segments)), inquiry):
        pass
    return {"tokens_read": book.spent() - before, "seconds": round(time.perf_counter() - started, 4)}


def _book(reader: Reader, case: Case, stored: str | None, folder: str) -> Any:
    """The document as it is asked: compiled in memory, or as the files hold it that are in ``folder`` afterwards."""
    document = longctx.Document.from_text(case.text, case.name)
    if stored is None:
        return reader.compile(document)
    return reader.compile(document, path=Path(folder) / "book.lctx", segment_kv="disk", segment_form=stored)


def _paper(
    reader: Reader,
    data: Path,
    sets: Sequence[str],
    budgets: Sequence[int],
    sample: int,
    seed: int,
    needle_chars: int,
    done: set[tuple[Any, ...]],
    base: dict[str, Any],
    quiet: bool,
) -> Any:
    """Rows of the released scoring: on documents cut to 16k tokens around the evidence, as published and cut "
    "to budgets."""
    counts: dict[str, int] = {}
    for case in cases(data, list(sets) if sample else [], seed, sample, needle_chars):
        for number, question in enumerate(case.questions):
            if counts.get(case.set, 0) >= sample:
                break
            counts[case.set] = counts.get(case.set, 0) + 1
            text, moved = _around(case.text, question, 4 * _PAPER_TOKENS)
            row = {**base, "set": case.set, "document": f"{case.name}@16k", "question": number}
            row |= {"sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16], "selector": PAPER}
            if all(_key(row | {"budget": b}) in done for b in (0, *budgets)):
                continue
            book = reader.compile(longctx.Document.from_text(text, case.name))
            most = min(book.tokens - 1, reader.longest_selection(question.text))
            selection, published = _measure(reader, book, moved, PAPER, most)
            yield row | published | {"budget": 0}
            for budget in budgets:
                yield row | published | _kept(reader.recut(book, selection, budget), moved) | {"budget": budget}
            if not quiet:
                _say(f"{case.set}: released scoring, question {counts[case.set]} of {sample}")


def _measure(reader: Any, book: Any, question: Question, selector: str, budget: int) -> tuple[Any, dict[str, Any]]:
    """One selection and what its row says of it."""
    started = time.perf_counter()
    selection = reader.select(book, question.text, budget_tokens=budget, selector=selector)
    seconds = round(time.perf_counter() - started, 4)
    facts = {"tokens_read": selection.tokens_read, "document_tokens": book.tokens, "seconds": seconds}
    return selection, {"budget": budget, **_kept(selection, question), **facts}


def _kept(selection: Any, question: Question) -> dict[str, Any]:
    recall = kept_share(question, [(span.start, span.end) for span in selection.spans])
    return {"recall": round(recall, 6), "tokens": selection.tokens}


def _around(text: str, question: Question, chars: int) -> tuple[str, Question]:
    """``text`` cut to ``chars`` characters with the first evidence in the middle, and the question moved with it."""
    first = min(start for alternatives in question.evidence for start, _ in alternatives)
    start = max(0, min(first - chars // 2, len(text) - chars))
    end = start + chars
    moved = tuple(
        tuple((a - start, b - start) for a, b in alternatives if a >= start and b <= end)
        for alternatives in question.evidence
    )
    return text[start:end], Question(question.text, tuple(m for m in moved if m), question.partial)


def _base(reader: Reader, label: str) -> dict[str, Any]:
    """What every row says of the run."""
    return {
        "model": label,
        "fingerprint": reader.fingerprint[:16],
        "longctx": longctx.__version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
        **here_and_now(),
    }


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("fingerprint", "set", "document", "sha256", "question", "selector", "budget")
    return (*(row[name] for name in names), row.get("stored"))


def _held(path: Path, base: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier run; a last line cut short by an interruption is dropped from the file.

    Raises ArtifactError, before anything is written, for a row that other versions made: its figures are not to be
    read beside those to come.
    """
    if not path.is_file():
        return []
    rows = read(path)
    for number, row in enumerate(rows, 1):
        now = {name: base[name] for name in ("longctx", "torch", "transformers")}
        if apart := differences({name: row.get(name) for name in now}, now):
            raise ArtifactError(
                f"{path}, line {number} was made with other versions: {'; '.join(apart)}. Name another --out; nothing "
                "was changed."
            )
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        put(path, data[: data.rfind(b"\n") + 1])
    return rows


def _say(text: str) -> None:
    import sys

    print(text, file=sys.stderr, flush=True)
