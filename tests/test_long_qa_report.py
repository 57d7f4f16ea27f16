"""The page of a suite: its figures are those of the rows, and only what both answered is compared."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from answer_rows import made

from longctx.errors import ArtifactError
from longctx.pipelines import long_qa_report as report


def page(folder: Path, *found: dict[str, Any]) -> str:
    (folder / "freeform-m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return str(report.write_report(folder, "freeform").read_text(encoding="utf-8"))


def test_the_page_counts_its_figures_from_the_rows(tmp_path: Path) -> None:
    auto = [made("auto", n, score) for n, score in enumerate((1.0, 1.0, 1.0, 0.0))]
    bm25 = [made("bm25", n, score) for n, score in enumerate((1.0, 0.0, 0.0, 1.0))]
    lost = {key: value for key, value in made("full", 0, 0.0, budget=None).items() if key not in ("score", "scores")}
    text = page(tmp_path, *auto, *bm25, {**lost, "error": {"kind": "DoesNotFit", "message": "m"}})
    assert "4 of 9 questions (seed 7), on 1 documents" in text
    assert "| auto | 100 | 4 | 90 | 75.0 | 75.0 | 37.5 | 0 | 0 |" in text
    assert "| bm25 | 100 | 4 | 90 | 50.0 | 50.0 | 25.0 | 0 | 0 |" in text
    assert "| full | all | 0 |  |  |  |  | 0 | 1 |" in text
    assert "| bm25 | 100 | 4 | 75.0 | 50.0 | +25.0 | -50.0 to +100.0 | 2 | 1 | 1.000 |" in text
    assert (
        "Compiling took 2.5 s for 500 tokens of 1 documents" in text
        and "| bm25 | 100 | 0 | 0.25 | 1.50 | 4.0 |" in text
    )


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_of_another_model_that_was_cut_short_is_left_out_and_said(packed: bool, tmp_path: Path) -> None:
    """It ended the job after all its work."""
    text = json.dumps(made("auto", 0, 1.0, model="other")) + "\n" + json.dumps(made("auto", 1, 1.0, model="other"))[:-9]
    if packed:
        (tmp_path / "freeform-other.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (tmp_path / "freeform-other.jsonl").write_text(text, encoding="ascii")
    found = page(tmp_path, made("auto", 0, 1.0), made("auto", 1, 0.0))
    assert "## other\n\n1 of 9 questions" in found and "## m\n\n2 of 9 questions" in found
    assert found.count("A last row that was cut short is left out.") == 1


def test_a_line_of_another_model_that_is_no_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "freeform-other.jsonl").write_text("{]\n", encoding="ascii")
    with pytest.raises(ArtifactError, match=r"freeform-other.jsonl, line 1 is no row of an evaluation. Move it"):
        page(tmp_path, made("auto", 0, 1.0))


def test_only_questions_that_both_answered_are_compared(tmp_path: Path) -> None:
    text = page(tmp_path, made("auto", 0, 1.0), made("auto", 1, 0.0), made("bm25", 1, 1.0), made("bm25", 2, 1.0))
    assert "| bm25 | 100 | 1 | 0.0 | 100.0 | -100.0 |" in text


def test_graded_scores_have_an_interval_and_no_test_and_tasks_stand_apart(tmp_path: Path) -> None:
    graded = {"graded": True, "metric": "token_f1", "task": "u"}
    found = [made(s, n, 0.5, **graded) for s in ("auto", "bm25") for n in (0, 1)]
    text = page(tmp_path, *found, made("auto", 2, 1.0), made("bm25", 2, 0.0))
    assert "| bm25 | 100 | 3 | 66.7 | 33.3 | +33.3 | +0.0 to +100.0 | 1 | 0 | 1.000 |" in text
    assert "| auto | 100 | 50.0 (n = 2) | 100.0 (n = 1) |" in text and "u (token_f1)" in text
    alone = page(tmp_path, *found)
    assert "| bm25 | 100 | 2 | 50.0 | 50.0 | +0.0 | +0.0 to +0.0 |  |  |  |" in alone and "### By task" not in alone


def test_the_part_for_another_page_has_the_tables_of_the_suites_that_have_rows(tmp_path: Path) -> None:
    whole = page(tmp_path, made("auto", 0, 1.0), made("bm25", 0, 0.0))
    found = report.part(tmp_path, ["leval", "freeform"])
    assert found.startswith("### freeform, m\n\n1 of 9 questions") and "leval" not in found
    tables = [line for line in found.splitlines() if line.startswith("| ")]
    assert len(tables) == 5 and all(line in whole for line in tables)
    assert report.part(tmp_path, ["leval"]) == "No answers are published yet."
