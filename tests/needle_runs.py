"""Runs of ``longctx needle`` with a tiny model, for the tests of its rows, its systems and its reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny

from longctx import Document, Reader
from longctx.pipelines import needle, needle_grid
from longctx.pipelines.haystack import Haystack, counter, sources
from longctx.pipelines.needle_systems import Books, Said, Selecting, turn
from longctx.pipelines.rows import Row, read

TIMES = {"seconds", "date", "tokens_read"}


def tiny_reader() -> Reader:
    return Reader(
        tiny.model(num_hidden_layers=2), tiny.tokenizer("system"), encoder=None, calibration=None, segment_tokens=128
    )


@dataclass(frozen=True)
class Oracle:
    """Says the sentence that holds the last words of the question, after ``limit`` answers nothing more."""

    name: str = "oracle"
    says: Callable[[str, str], str] = lambda text, question: text
    settings = {"max_new_tokens": 8}

    def answer(self, document: Document, question: str) -> Said:
        return Said(self.says(document.text, question), ((0, len(document.text)),))


def grid(**changes: Any) -> needle_grid.Grid:
    return needle_grid.Grid(**{"tasks": ("number",), "lengths": (600,), "depths": 3, **changes})


def made(
    reader: Reader, out: Path, asked: needle_grid.Grid, systems: Sequence[Any], haystack: Sequence[Path] = ()
) -> list[Row]:
    out.mkdir(exist_ok=True)
    count = counter(reader.tokenizer)
    common = needle.made_with(asked, "tiny", "abc", ["python"], None)
    rows = needle.rows_of(out, systems, common)
    needle.run(asked, systems, Haystack(sources(haystack), count), count, rows, common, {"machine": "m"})
    return read(out / needle.ROWS)


def selecting(reader: Reader, selector: str = "bm25", budget: int = 150, **more: Any) -> Selecting:
    return Selecting(Books(reader), selector, budget, 4, {"splitter": "auto"}, **more)


class Recording(Reader):
    """Writes down what its model is given."""

    asked: list[str]

    def prompt(self, text: str, question: str) -> list[int]:
        self.asked.append(turn(text, question))
        return super().prompt(text, question)


def recording(window: int = 4096) -> Recording:
    made = Recording(
        tiny.model(num_hidden_layers=2, max_position_embeddings=window),
        tiny.tokenizer("system"),
        encoder=None,
        calibration=None,
        segment_tokens=128,
    )
    made.asked = []
    return made


def of_before(row: Row) -> Row:
    """The row as it was when rows held the selection's spans in place of those that were given."""
    new = ("asked", "held", "between", "given_sha256")
    made = {name: value for name, value in row["made_with"].items() if name not in ("kept", "kv")}
    return {**{name: value for name, value in row.items() if name not in new}, "made_with": made}


def timeless(rows: Sequence[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
