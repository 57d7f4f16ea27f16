"""``longctx bench compiled`` on a tiny model: what its row says, and that the stored document is really asked."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny

from longctx import Document, Reader
from longctx.errors import BadOption, UnknownMethod, UsageError
from longctx.pipelines import bench_compiled, processes

pytestmark = pytest.mark.usefixtures("one_thread")
HOW = {
    "dtype": "float32", "segment_kv": "disk", "segment_form": "exact", "budget_tokens": 128, "selector": "infiniretri",
    "straight": False, "threads": 1,
}  # fmt: skip


def here(module: str, function: str, given: Sequence[Any]) -> Any:
    """What a process of its own says, said by this one: each of the others is ten seconds of imports."""
    return json.loads(json.dumps(getattr(importlib.import_module(module), function)(*json.loads(json.dumps(given)))))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of a text that memory holds, measured here, and of the same as if none did, in processes of its own."""
    tmp_path = tmp_path_factory.mktemp("bench")
    model = tiny.save(tmp_path / "model", "llama", template="system")
    text = tmp_path / "text.txt"
    words = [f"word{i * 7919 % 251} and stone{i * 31 % 97}" for i in range(450)]
    text.write_text(". ".join(" ".join(words[at : at + 9]) for at in range(0, 450, 9)) + ".")
    for straight in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if not straight:
                patch.setattr(processes, "call", here)
            path = bench_compiled.run_compiled(
                str(model), tmp_path / "out", data=text, questions=3, budget_tokens=128, dtype="float32",
                selector="infiniretri", straight=straight,
            )  # fmt: skip
    assert str(tmp_path) not in path.read_text()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_loaded_document_gives_the_spans_of_the_fresh_one(rows: list[dict[str, Any]]) -> None:
    row, _ = rows
    assert row["same_spans"] == 3 and row["kept_shared"] == 1.0
    assert row["questions"] == 3 and row["tokens"] > 1000 and row["bytes_per_token"] > 0
    assert row["times_cheaper"] == pytest.approx(row["compile_and_first_seconds"] / row["later_seconds"]["median"], 0.1)
    assert (row["cold_first_seconds"] or 0) > 0 or not hasattr(os, "posix_fadvise")
    whole = row["compile_and_first_seconds"] + row["save_seconds"]
    assert 0 < row["append_seconds"] == pytest.approx(row["append_share"] * whole, rel=0.1)


def test_a_text_that_no_memory_holds_is_compiled_into_its_files_and_asked_there(rows: list[dict[str, Any]]) -> None:
    kept, straightway = rows
    assert straightway["same_spans"] == 3 and straightway["append_seconds"] > 0
    assert (kept["straight"], straightway["straight"]) == (False, True)
    assert kept["save_seconds"] > 0.001 > straightway["save_seconds"]
    assert kept["bytes_per_token"] == straightway["bytes_per_token"] and straightway["kept_shared"] == 1.0
    if straightway["loaded_bytes"] is not None:
        assert min(straightway["peak_bytes"].values()) > 0 and straightway["loaded_bytes"] > 50e6


def test_where_no_segments_are_kept_a_text_is_compiled_into_its_files_too(tmp_path: Path) -> None:
    """What the processes of such a row are told to do, done here: it is the same for every way of keeping segments."""
    model = str(tiny.save(tmp_path / "model", "llama", template="system"))
    text = " ".join(f"Stone {i * 7919 % 251} lies by the river {i * 31 % 97}." for i in range(200))
    asked = bench_compiled.questions_about(text, 2)
    made, files = [], []
    for straight in (False, True):
        stored = tmp_path / f"{straight}.lctx"
        how = HOW | {"model": model, "stored": str(stored), "segment_kv": "none", "straight": straight}
        fresh = bench_compiled.compile_and_ask(how, text, asked)
        again = bench_compiled.load_and_ask(how, asked)
        assert again["spans"] == fresh["spans"] and len(fresh["spans"]) == 2 and fresh["spans"][0]
        made.append(fresh)
        files.append(sorted((file.name.split("-")[0], file.stat().st_size) for file in stored.iterdir()))
    kept, straightway = made
    assert straightway["spans"] == kept["spans"] and files[0] == files[1]
    assert kept["saving"] > 0.001 > straightway["saving"] and kept["tokens"] == straightway["tokens"] > 1000
    assert not any(name == "segment" for name, _ in files[1])


def test_a_longer_text_comes_to_the_stored_document(tmp_path: Path) -> None:
    model = str(tiny.save(tmp_path / "model", "llama", template="system"))
    text = " ".join(f"Stone {i} lies by the river." for i in range(300))
    reader = Reader.from_pretrained(model, dtype="float32", encoder=None)
    reader.compile(Document.from_text(text[:6000], "text"), path=tmp_path / "b.lctx", segment_kv="disk")
    how = HOW | {"model": model, "stored": str(tmp_path / "b.lctx"), "selector": "auto"}
    assert bench_compiled.append(how, text) > 0
    assert [document.text for document in reader.load(tmp_path / "b.lctx").documents] == [text]


def test_one_question_leaves_none_to_ask_later_and_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="questions=1 must be at least 2"):
        bench_compiled.run_compiled("nowhere", tmp_path, questions=1)
    model = tiny.save(tmp_path / "model", "llama", template="system")
    with pytest.raises(BadOption, match="segment_kv='tape' must be one of"):
        bench_compiled.run_compiled(str(model), tmp_path, segment_kv="tape")
    with pytest.raises(UnknownMethod, match="nonsense"):
        bench_compiled.run_compiled(str(model), tmp_path, segment_kv="none", selector="nonsense")


def test_shares_and_questions() -> None:
    assert bench_compiled._shared([[0, 10]], [[5, 20]]) == 0.5
    assert bench_compiled._shared([], []) == 1.0 and bench_compiled._shared([], [[0, 1]]) == 0.0
    text = " ".join(f"w{i}" for i in range(100))
    assert bench_compiled.questions_about(text, 2) == [
        "What is said about w25 w26 w27 w28 w29 w30?",
        "What is said about w75 w76 w77 w78 w79 w80?",
    ]
    with pytest.raises(UsageError, match="100 words"):
        bench_compiled.questions_about(text, 6)
