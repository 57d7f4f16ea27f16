"""LongChat-Lines (Li et al. 2023): a record of many lines with a number each; one number is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..cases import Case, Measure, Question, rows

_MOST_NEW = 35  # as published


def cases(folder: Path) -> Iterator[Case]:
    for row in rows(folder):
        record, _, asked = row.text("prompt").rstrip().rpartition("\n\n")
        if not record.strip():
            raise row.wrong("has a prompt without an empty line between the record and the question")
        if not row.text("expected_number").isdecimal():
            raise row.wrong("has an 'expected_number' that is no whole number")
        name = f"{row.file.stem}-{row.number}"
        measure = Measure("first_number", (row.text("expected_number"),))
        question = Question("0", asked, asked, (measure,), _MOST_NEW)
        yield Case(f"{row.text('num_lines')} lines", name, record, (question,))
