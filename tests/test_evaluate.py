"""The evaluation of selection on a set made here: rows once, resumed after an interruption, and a page made of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from longctx import Document, Reader
from longctx.errors import ArtifactError, BadOption
from longctx.pipelines.evaluate import FULL, run_selection
from longctx.pipelines.selection_report import write_figures, write_report
from longctx.pipelines.selection_sets import Question, cases, kept_share

pytestmark = pytest.mark.usefixtures("one_thread")
FACT = "The lamp of Odette stands in room 4711."


@pytest.fixture
def data(tmp_path: Path) -> Path:
    filler = [f"In week {i} the market by the river was quiet and little was sold." for i in range(120)]
    filler[70] = FACT
    row = {
        "title": "t",
        "input": " ".join(filler),
        "qa_pairs": [{"Q": "Where is Odette's lamp?", "A": "4711", "S": FACT}],
    }
    (tmp_path / "data" / "loogle").mkdir(parents=True)
    (tmp_path / "data" / "loogle" / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return tmp_path / "data"


def test_rows_are_made_once_and_an_interrupted_run_goes_on(data: Path, tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    grid = {"sets": ("loogle",), "budgets": (100, 200), "selectors": ("head", "bm25"), "quiet": True}
    path = run_selection(data, str(model), tmp_path / "out", **grid)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {(r["selector"], r["budget"]) for r in rows} == {(s, b) for s in ("head", "bm25") for b in (100, 200)}
    assert all(row["tokens"] <= row["budget"] for row in rows)
    assert {row["recall"] for row in rows if row["selector"] == "bm25"} == {1.0}
    assert {row["recall"] for row in rows if row["selector"] == "head"} == {0.0}
    assert FACT not in path.read_text(encoding="utf-8")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    run_selection(data, str(model), tmp_path / "out", **grid)
    again = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(again) == len(rows) and again[:-1] == rows[:-1]
    assert "| bm25 | 100.0 | 100.0 | 1 |" in (tmp_path / "out" / "selection.md").read_text(encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8").replace(f'"torch": "{rows[0]["torch"]}"', '"torch": "1.0"', 1))
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match=r"line 1 was made with other versions: torch was '1\.0' and is"):
        run_selection(data, str(model), tmp_path / "out", **grid)
    assert path.read_bytes() == before


def test_selectors_that_read_everything_share_one_pass_and_keep_what_they_keep_alone(
    data: Path, tmp_path: Path
) -> None:
    model = tiny.save(tmp_path / "model")
    grid = {"sets": ("loogle",), "budgets": (100, 200), "selectors": ("bm25", *FULL), "quiet": True}
    path = run_selection(data, str(model), tmp_path / "out", **grid)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {row["selector"]: row["tokens_read"] for row in rows if row["selector"] in FULL} == dict.fromkeys(FULL, 0)
    (shared,) = {row["together"]["tokens_read"] for row in rows if "together" in row}
    assert [row["selector"] for row in rows if "together" not in row] == ["bm25", "bm25"]
    (case,) = cases(data, ["loogle"], 7, 100, 0)
    reader = Reader.from_pretrained(str(model))
    for selector in FULL:
        book = reader.compile(Document.from_text(case.text, case.name))
        alone = reader.select(book, case.questions[0].text, budget_tokens=200, selector=selector)
        assert 0 < alone.tokens_read <= shared
        (row,) = [row for row in rows if row["selector"] == selector and row["budget"] == 200]
        share = kept_share(case.questions[0], [(span.start, span.end) for span in alone.spans])
        assert (row["tokens"], row["recall"]) == (alone.tokens, round(share, 6))


def test_segments_from_files_stand_beside_those_just_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms: dict[str | None, None] = {}
    select = Reader.select

    def selecting(reader: Reader, book: Any, question: str, **given: Any) -> Any:
        forms[book.saved.segment_form if book.saved is not None else None] = None
        return select(reader, book, question, **given)

    monkeypatch.setattr(Reader, "select", selecting)
    model = tiny.save(tmp_path / "model")
    grid = {"sets": ("loogle",), "budgets": (100, 200), "quiet": True}
    run_selection(data, str(model), tmp_path / "out", selectors=("auto",), **grid)
    for form in ("exact", "int8"):
        path = run_selection(data, str(model), tmp_path / "out", stored=form, **grid)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(r["selector"], r.get("stored"), r["budget"]) for r in rows] == [
        ("auto", form, budget) for form in (None, "exact", "int8") for budget in (200, 100)
    ]
    assert list(forms) == [None, "exact", "int8"]
    page = (tmp_path / "out" / "selection.md").read_text(encoding="utf-8")
    assert "| auto, stored int8 | 100.0 | 100.0 | 1 |" in page
    assert "| auto | exact | loogle | 100 | 1 | 100.0 | 100.0 | +0.0 | +0.0 to +0.0 |" in page
    before = path.read_bytes()
    run_selection(data, str(model), tmp_path / "out", stored="int8", **grid)
    assert path.read_bytes() == before
    fresh, others = [row for row in rows if "stored" not in row], [row for row in rows if "stored" in row]
    with gzip.open(tmp_path / "out" / "selection-packed.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in fresh)
    path.write_text("".join(json.dumps(row) + "\n" for row in others), encoding="utf-8")
    assert write_report(tmp_path / "out", tmp_path / "page.md").read_text(encoding="utf-8").count("\n## ") == 1
    assert "| auto | int8 | loogle | 100 | 1 |" in (tmp_path / "page.md").read_text(encoding="utf-8")
    with pytest.raises(BadOption, match="paper_sample=1"):
        run_selection(data, str(model), tmp_path / "out", stored="int8", paper_sample=1, **grid)
    with pytest.raises(BadOption, match="stored='tape'"):
        run_selection(data, str(model), tmp_path / "out", stored="tape")


def test_partial_facts_count_by_their_characters_and_others_only_whole() -> None:
    place = ((10, 20),)
    assert kept_share(Question("?", (place,), partial=True), [(0, 15)]) == pytest.approx(0.5)
    assert kept_share(Question("?", (place,)), [(0, 15)]) == 0.0
    assert kept_share(Question("?", (place, ((30, 40), (0, 5)))), [(0, 20)]) == 1.0


def test_a_page_of_auto_alone_compares_it_with_nothing(tmp_path: Path) -> None:
    about = {"model": "m", "fingerprint": "f", "longctx": "0", "torch": "0", "transformers": "0", "machine": "m"}
    row = about | {
        "date": "2026-01-01",
        "document": "d",
        "question": 0,
        "selector": "auto",
        "budget": 512,
        "recall": 1.0,
    }
    rows = [row | {"set": name} for name in ("loogle", "qmsum")]
    (tmp_path / "selection-m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    page = write_report(tmp_path, tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| auto | 100.0 | 100.0 | 1/1 |" in page and "Average over" not in page


def test_the_table_of_figures_needs_its_mark(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here", encoding="utf-8")
    with pytest.raises(ValueError, match="figures"):
        write_figures(tmp_path, tmp_path / "README.md")
