"""``longctx bench copies``: a row of what an index takes, of a text that is long and no copy of itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny

from longctx.errors import BadOption
from longctx.pipelines import bench_copies


def test_a_row_says_what_index_look_ups_and_drafts_take(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"Stone {i % 7} lies by the river." for i in range(60)))
    for _ in range(2):
        path = bench_copies.run_copies(str(model), tmp_path / "out", data=text, tokens=4000, steps=30, nodes=5)
    first, row = [json.loads(line) for line in path.read_text().splitlines()]
    assert (row["tokens"], row["nodes"], row["text"], row["places"]) == (4000, 5, "text.txt", 48)
    assert row["build_seconds"] >= 0 and 12 * row["tokens"] <= row["peak_bytes"] < 400 * row["tokens"]
    assert row["matched_tokens"] == first["matched_tokens"] > 8, (
        "places are drawn by a fixed seed, of a text that repeats"
    )
    for what in ("look_up_microseconds", "draft_microseconds"):
        assert 0 < row[what]["median"] <= row[what]["p90"] <= row[what]["p99"]
    assert str(tmp_path) not in path.read_text()


def test_a_lengthened_text_repeats_itself_as_the_text_does_and_is_no_copy_of_it() -> None:
    tokenizer = tiny.tokenizer()
    text = "Time and tide wait; and time, like the tide, waits for no one and for nothing."
    whole = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert text.startswith(bench_copies.lengthened(text, whole // 2, tokenizer))
    made = bench_copies.lengthened(text, 3 * whole, tokenizer)
    assert len(tokenizer(made, add_special_tokens=False)["input_ids"]) == 3 * whole
    first, again = made.split("\n")[:2]
    assert first == text
    one, two = [re.findall(r"\w+", part) for part in (first, again)]
    assert [one.index(word) for word in one] == [two.index(word) for word in two], "words come again where they did"
    assert set(one) == set(two) and sum(a == b for a, b in zip(one, two, strict=True)) < len(one) // 2


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(BadOption, match="nodes=0 .* tokens=64 more than 64"):
        bench_copies.run_copies("nowhere", Path("out"), tokens=64, nodes=0)


def test_a_model_that_nothing_is_drafted_for_is_refused_and_leaves_no_row(tmp_path: Path) -> None:
    tiny.hybrid().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("Stones lie by the river. " * 30)
    with pytest.raises(BadOption, match="model decodes one token at a time here"):
        bench_copies.run_copies(str(tmp_path / "model"), tmp_path / "out", data=text, tokens=100, steps=3, nodes=5)
    assert not (tmp_path / "out").exists()
