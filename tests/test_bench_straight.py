"""``longctx bench compiled`` of a text that is compiled into its files, beside one that memory holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from longctx.pipelines import bench_compiled

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_text_that_no_memory_holds_is_compiled_into_its_files_and_asked_there(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model", "llama", template="system")
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"Stone {i * 7919 % 251} lies by the river {i * 31 % 97}." for i in range(600)))
    for straight in (False, True):
        bench_compiled.run_compiled(
            str(model), tmp_path, data=text, questions=2, budget_tokens=128, dtype="float32", selector="infiniretri",
            segment_kv="none", straight=straight,
        )  # fmt: skip
    kept, straightway = [json.loads(line) for line in (tmp_path / "compiled.jsonl").read_text().splitlines()]
    assert (kept["straight"], straightway["straight"]) == (False, True)
    assert kept["save_seconds"] > 0.001 > straightway["save_seconds"]
    assert kept["bytes_per_token"] == straightway["bytes_per_token"] and straightway["kept_shared"] == 1.0
    if straightway["loaded_bytes"] is not None:
        assert min(straightway["peak_bytes"].values()) > 0 and straightway["loaded_bytes"] > 50e6
