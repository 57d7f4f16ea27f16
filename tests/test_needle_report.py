"""What is written of the rows of ``longctx needle``: means, tables, pictures and a page."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from needle_runs import Oracle, grid, made, tiny_reader

from longctx import Reader
from longctx.errors import EndpointError
from longctx.pipelines import needle_report
from longctx.pipelines.rows import Row

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reader() -> Reader:
    return tiny_reader()


@pytest.fixture
def rows(reader: Reader, tmp_path: Path) -> list[Row]:
    nasty = Oracle(name="<b>loud</b>", says=lambda text, question: f"<script>alert(1)</script> {text[:9000]}")
    return made(reader, tmp_path, grid(tasks=("number", "common_words"), lengths=(600, 900)), [nasty])


def test_the_summary_is_the_mean_of_the_rows(rows: list[Row]) -> None:
    lines = needle_report.summary(rows)
    assert [(line.task, line.length, line.rows) for line in lines] == [
        ("number", 600, 3), ("common_words", 600, 1), ("number", 900, 3), ("common_words", 900, 1)
    ]  # fmt: skip
    assert (lines[0].kept, lines[0].said) == (1.0, 1.0)
    assert lines[0].kept_interval == pytest.approx((0.4385, 1.0), abs=1e-4)  # Wilson, 3 of 3
    assert lines[1].kept is None


def test_means_tell_over_how_many_answers_they_are(reader: Reader, tmp_path: Path) -> None:
    hours = iter([True, False, False, True, False])

    def sometimes(text: str, question: str) -> str:
        if not next(hours):
            raise EndpointError("no answer", 3)
        return text

    rows = made(reader, tmp_path, grid(depths=5), [Oracle(says=sometimes)])
    (line,) = needle_report.summary(rows)
    assert (line.rows, line.refused, line.unanswered, line.answered, line.said) == (5, 0, 3, 2, 1.0)
    assert line.cells[-1] == "100 % [34, 100] of 2"
    assert "100 % [34, 100] of 2" in needle_report.write(tmp_path, rows).files["html"].read_text(encoding="utf-8")


def test_files_hold_every_row_and_the_page_fetches_nothing_and_runs_nothing(rows: list[Row], tmp_path: Path) -> None:
    written = needle_report.write(tmp_path, rows)
    listed = list(csv.DictReader(written.files["csv"].read_text(encoding="utf-8").splitlines()))
    assert [row["question"] for row in listed] == [row["question"] for row in rows]
    assert written.files["png"].read_bytes().startswith(b"\x89PNG")
    page = written.files["html"].read_text(encoding="utf-8")
    assert "<script" not in page and "<b>loud" not in page and "&lt;b&gt;loud" in page
    assert re.findall(r"(?:src|href)=.{6}", page) == ["src='data:"]
    for row in rows:
        assert row["question"] in page
    png = written.files["png"].read_bytes()
    needle_report.write(tmp_path, rows)
    assert written.files["png"].read_bytes() == png, "the same rows make the same picture"


def test_cells_are_means_over_seeds_and_empty_where_nothing_was_measured() -> None:
    def row(seed: int, depth: float, kept: float | None, said: float | None) -> Row:
        return {"depth": depth, "length": 9, "seed": seed, "kept": kept, "said": said}

    cells = needle_report.grid([row(0, 1.0, 1.0, 0.5), row(1, 1.0, 0.0, 1.0), row(0, 0.0, None, 0.0)], [9, 10])
    assert cells.depths == (0.0, 1.0)
    assert cells.cells == {"kept": [[None, None], [0.5, None]], "said": [[0.0, None], [0.75, None]]}


# The command
