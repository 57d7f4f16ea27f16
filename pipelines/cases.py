"""The nouns of long question answering, and the reading of rows in the folders they come from.

A case is one document with its questions. Knows no format and no metric: a measure names its metric.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx.errors import UsageError


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric and the references it compares with, the best counts; ``label`` names it in the rows."""

    metric: str
    references: tuple[str, ...]
    label: str = ""
    classes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.label or self.metric


@dataclass(frozen=True, slots=True)
class Question:
    """What selection searches for (``query``) and what the model is asked after the text (``prompt``).

    The first of ``measures`` is the score; the others are second figures. ``first_line``: only the answer's first line
    is scored, as LongBench does where examples would be continued.
    """

    id: str
    query: str
    prompt: str
    measures: tuple[Measure, ...]
    max_new_tokens: int
    first_line: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One document of one task with all its questions."""

    task: str
    name: str
    text: str
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a file, and where it stands for messages."""

    file: Path
    number: int
    fields: dict[str, Any]

    def text(self, *names: str) -> str:
        """The text of the first of ``names`` there is; a number as text. Raises UsageError naming file and line."""
        for name in names:
            value = self.fields.get(name)
            if isinstance(value, (str, int, float)) and not isinstance(value, bool):
                return str(value)
        raise self.wrong(f"has no text in {' or '.join(map(repr, names))}")

    def items(self, *names: str) -> list[Any]:
        """The list of the first of ``names`` there is. Raises UsageError naming file and line."""
        for name in names:
            value = self.fields.get(name)
            if isinstance(value, list):
                return value
        raise self.wrong(f"has no list in {' or '.join(map(repr, names))}")

    def within(self, value: Any) -> Row:
        """An object inside this row, with the same place in messages."""
        if not isinstance(value, dict):
            raise self.wrong(f"holds {type(value).__name__} where an object is expected")
        return Row(self.file, self.number, value)

    def has(self, name: str) -> bool:
        return self.fields.get(name) is not None

    def wrong(self, what: str) -> UsageError:
        return UsageError(f"{self.file}, row {self.number} {what}.")


def rows(folder: Path) -> Iterator[Row]:
    """The objects of every .jsonl file below ``folder`` and of every .json file that is a list, by file name.

    Raises UsageError for a folder without any and for a line that is no object.
    """
    empty = True
    for path in sorted(folder.rglob("*.json*")):
        for number, value in _values(path):
            if not isinstance(value, dict):
                raise UsageError(f"{path}, row {number} is not an object.")
            empty = False
            yield Row(path, number, value)
    if empty:
        raise UsageError(f"{folder} holds no rows: neither a .jsonl file nor a .json file with a list.")


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises UsageError for what is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not JSON in UTF-8: {error}.") from error


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix == ".json":
        value = read_json(path)
        yield from enumerate(value if isinstance(value, list) else [], 1)  # an object is a table of settings
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _object(path, number, line)


def _object(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, row {number} is not JSON: {error}.") from error
