"""Altered-number QA (Pal et al. 2023, Giraffe): the numbers in the text were changed, so memory gives the wrong one.

The passages of a file stand one after another as one document; ``from_memory`` counts answers with the old number.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from ..cases import Case, Measure, Question, Row, rows

_MOST_NEW = 50  # as published


def cases(folder: Path) -> Iterator[Case]:
    for path, group in groupby(rows(folder), lambda row: row.file):
        found = list(group)
        text = "\n\n".join(f"{row.text('title')}\n{row.text('passage')}" for row in found)
        yield Case("altered_numeric_qa", path.stem, text, tuple(_question(row) for row in found))


def _question(row: Row) -> Question:
    asked = row.text("question")
    measures = (
        Measure("whole_number", (row.text("altered_answer"),)),
        Measure("whole_number", (row.text("original_answer"),), "from_memory"),
    )
    return Question(str(row.number), asked, f"{asked}\nAnswer with a number from the text.", measures, _MOST_NEW)
