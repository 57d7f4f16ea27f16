"""``longctx bench copies``: a row of what an index takes, of a text that is long and no copy of itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from longctx.errors import BadOption
from longctx.pipelines import bench_copies
from longctx.suffixes import SuffixIndex


def test_a_row_says_what_index_look_ups_and_drafts_take(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"Stone {i % 7} lies by the river." for i in range(60)))
    for _ in range(2):
        path = bench_copies.run_copies(str(model), tmp_path / "out", data=text, tokens=4000, steps=30, nodes=5)
    first, row = [json.loads(line) for line in path.read_text().splitlines()]
    assert (row["tokens"], row["nodes"], row["text"], row["places"]) == (4000, 5, "text.txt", 48)
    assert row["build_seconds"] >= 0 and (row["peak_bytes"] is None or row["peak_bytes"] > 0)
    assert row["matched_tokens"] == first["matched_tokens"] > 8, (
        "places are drawn by a fixed seed, of a text that repeats"
    )
    for what in ("look_up_microseconds", "draft_microseconds"):
        assert 0 < row[what]["median"] <= row[what]["p90"] <= row[what]["p99"]
    assert str(tmp_path) not in path.read_text()


def test_a_lengthened_text_repeats_itself_as_the_text_does_and_is_no_copy_of_it() -> None:
    ids = np.asarray([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], np.int32)
    made = bench_copies.lengthened(ids, 30, 500)
    assert len(made) == 30 and made[:12].tolist() == ids.tolist()
    again = made[12:24]
    assert [again.tolist().index(one) for one in again] == [ids.tolist().index(one) for one in ids]
    assert max(length for _, length in SuffixIndex(made[:12]).matches(again.tolist(), 9) or [(0, 0)]) < 3


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(BadOption, match="nodes=0 .* tokens=64 more than 64"):
        bench_copies.run_copies("nowhere", Path("out"), tokens=64, nodes=0)
