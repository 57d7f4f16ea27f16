"""The table of a grid from its rows: what stands in a mean, what is counted beside it, and what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longctx.pipelines import bench_report


def row(method: str, score: float | None, **more: Any) -> dict[str, Any]:
    own = {
        "model": "m", "task": "single", "length": 2000, "example": "e", "method": method, "budget": None,
        "score": score, "kept": 1.0, "prompt_tokens": 1000, "reused": False,
        "measured": {"prompt_tokens": 400, "new_tokens": 5},
        "seconds": {"prefill": 1.0, "decode": 2.0, "total": 4.0}, "peak_bytes": 10**9, "machine": "x", "date": "d",
        "program": {"versions": {"torch": "2"}},
    }  # fmt: skip
    return own | more


def test_a_mean_is_over_answered_rows_and_speeds_are_sums_over_sums() -> None:
    rows = [
        row("a", 1.0),
        row("a", 0.0, kept=None, seconds={"prefill": 1.0, "decode": 6.0, "total": 16.0}, peak_bytes=3 * 10**9),
        row("a", None, refused={"kind": "unchanged", "message": ""}),
        {"model": "m", "task": "single", "length": 2000, "method": "a", "budget": None, "score": None,
         "error": {"kind": "timeout", "message": ""}},
    ]  # fmt: skip
    (line,) = bench_report.summary(rows)
    assert (line.measured, line.score, line.kept, line.seconds) == (2, 0.5, 1.0, 10.0)
    assert line.tokens_per_second == pytest.approx(2000 / 20) and line.peak_bytes == 3 * 10**9
    assert line.answer_tokens_per_second == pytest.approx(8 / 8)
    assert line.refused == ("unchanged",) and line.errors == ("timeout",) and line.read == 400
    assert line.cells[4] == "50% (9% to 91%)" and line.cells[-2:] == ("1 unchanged", "1 timeout")


def test_keys_that_were_kept_are_what_was_read_and_reading_is_no_decoding() -> None:
    kept = {"measured": {"prompt_tokens": 400, "new_tokens": 5, "kept_tokens": 50.5}}
    (line,) = bench_report.summary([row("a", 1.0, **kept, seconds={"answer": 2.0, "decode": 2.0, "total": 4.0})])
    assert line.read == 50.5 and line.answer_tokens_per_second is None


def test_the_page_has_a_table_for_every_length_and_the_picture_is_one(tmp_path: Path) -> None:
    rows = [row("a", 1.0), row("b", None, refused={"kind": "unchanged", "message": ""}), row("a", 1.0, length=4000)]
    page, picture = bench_report.write_report(tmp_path, "grid", rows)
    text = page.read_text()
    order = [(line.length, line.method) for line in bench_report.summary([*rows, row("c", 1.0)])]
    assert order == [(2000, "a"), (2000, "b"), (2000, "c"), (4000, "a")]
    assert text.count("| method |") == 2 and "## m, single, 4,000 tokens" in text
    assert "- torch 2\n" in text and "Machine and date: x, d." in text
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.md", "grid.png"]
