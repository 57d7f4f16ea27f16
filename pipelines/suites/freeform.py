"""Free-form QA in the manner of Giraffe's FreeFormQA, and the format for questions of your own.

A row has a ``question``, its ``answers`` (or one ``answer``) and either a ``document`` of its own or a ``passage``; the
passages of a file stand one after another as one document. Right is an answer that contains a reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from ..cases import Case, Measure, Question, Row, rows

_METRICS = ("contains", "token_f1")
_MOST_NEW = 50  # as published


def cases(folder: Path) -> Iterator[Case]:
    for path, group in groupby(rows(folder), lambda row: row.file):
        pooled: list[Row] = []
        documents: dict[str, list[Row]] = {}
        for row in group:
            if row.has("document"):
                documents.setdefault(row.text("document"), []).append(row)
            else:
                pooled.append(row)
        if pooled:
            yield Case("freeform", path.stem, "\n\n".join(map(_passage, pooled)), tuple(map(_question, pooled)))
        for number, (text, own) in enumerate(documents.items(), 1):
            yield Case("freeform", f"{path.stem}-{number}", text, tuple(map(_question, own)))


def _passage(row: Row) -> str:
    return f"{row.text('title')}\n{row.text('passage')}" if row.has("title") else row.text("passage")


def _question(row: Row) -> Question:
    asked = row.text("question")
    references = tuple(map(str, row.items("answers"))) if row.has("answers") else (row.text("answer"),)
    if not references:
        raise row.wrong("has no answers")
    measures = tuple(Measure(metric, references) for metric in _METRICS)
    return Question(str(row.number), asked, f"{asked}\nAnswer with a short phrase.", measures, _MOST_NEW)
