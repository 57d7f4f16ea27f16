"""Passkey retrieval (Mohtashami and Jaggi 2023): a number planted in repeated filler; ``input`` and ``target``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..cases import Case, Measure, Question, rows

_ASKED = "What is the pass key? Give only the number."
_MOST_NEW = 32


def cases(folder: Path) -> Iterator[Case]:
    for row in rows(folder):
        question = Question("0", _ASKED, _ASKED, (Measure("whole_number", (row.text("target"),)),), _MOST_NEW)
        yield Case("passkey", f"{row.file.stem}-{row.number}", row.text("input"), (question,))
