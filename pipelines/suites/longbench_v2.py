"""LongBench v2 (Bai et al. 2024): multiple choice over contexts of 8k to 2M words; ``data.json`` or lines of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..cases import Case, Measure, Question, Row, rows

_OPTIONS = "ABCD"
_MOST_NEW = 128


def cases(folder: Path) -> Iterator[Case]:
    for row in rows(folder):
        yield Case(row.text("length"), row.text("_id"), row.text("context"), (_question(row),))


def _question(row: Row) -> Question:
    options = "\n".join(f"({letter}) {row.text(f'choice_{letter}').strip()}" for letter in _OPTIONS)
    asked = f"What is the correct answer to this question: {row.text('question').strip()}\nChoices:\n{options}"
    prompt = f'{asked}\n\nFormat your response as follows: "The correct answer is (insert answer here)".'
    answer = row.text("answer").strip()
    if answer not in set(_OPTIONS):
        raise row.wrong(f"has the answer {answer!r}, which is none of {_OPTIONS}")
    measures = (Measure("option", (answer,)), Measure("lone_option", (answer,)))
    return Question(row.text("_id"), f"{row.text('question')}\n{options}", prompt, measures, _MOST_NEW)
