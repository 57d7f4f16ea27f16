"""Questions about whole books, in the form of LiteraryQA and NarrativeQA: a line a book, its text in a file beside.

``book_file`` is looked for in the folder and in the one above it, and can name no file elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..cases import Case, Measure, Question, Row, rows

_METRICS = ("token_f1", "rouge_l", "contains")
_MOST_NEW = 128  # LongBench's limit for NarrativeQA


def cases(folder: Path) -> Iterator[Case]:
    for row in rows(folder):
        questions = [_question(row.within(item), str(number)) for number, item in enumerate(row.items("qas"))]
        yield Case("book_qa", row.text("document_id"), _text(folder, row), tuple(questions))


def _question(item: Row, number: str) -> Question:
    asked = item.text("question")
    references = tuple(map(str, item.items("answers")))
    if not references:
        raise item.wrong("has a question without answers")
    measures = tuple(Measure(metric, references) for metric in _METRICS)
    return Question(number, asked, f"{asked}\nAnswer with a short phrase.", measures, _MOST_NEW)


def _text(folder: Path, row: Row) -> str:
    if row.has("text"):
        return row.text("text")
    name = row.text("book_file")
    if Path(name).anchor or ".." in Path(name).parts:
        raise row.wrong(f"names the book {name!r}, which leads out of the data")
    for path in (folder / name, folder.parent / name):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise row.wrong(f"names the book {name!r}, which is neither in {folder} nor in {folder.parent}")
