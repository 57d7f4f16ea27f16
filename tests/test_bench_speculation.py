"""The benchmark of drafting: its rows say what was measured, and whether the tokens were the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from longctx.errors import UsageError
from longctx.pipelines import bench_speculation as bench

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_method_answers_every_prompt_and_says_whether_it_is_the_same(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model", num_hidden_layers=2)
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"group": "a", "prompt": "the code of the room"}\n{"group": "b", "prompt": "river street"}\n')
    path = bench.run_speculation(
        str(model), tmp_path / "out", data=data, dtype="float32", max_new_tokens=6, stacks=["none", "document+lookup"]
    )
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    names = {"hf", "none", "document+lookup", *(f"hf_lookup:{setting}" for setting in bench.LOOKUPS)}
    assert {(row["group"], row["method"]) for row in rows} == {(group, name) for group in "ab" for name in names}
    assert all(row["same"] for row in rows) and all(1 <= row["new_tokens"] <= 6 for row in rows)
    drafted = next(row for row in rows if row["method"] == "document+lookup")
    assert set(drafted["accepted_by_source"]) == {"document", "lookup"} and drafted["phases"]["verify_seconds"] > 0
    assert all(0 < row["first_seconds"] <= row["seconds"] for row in rows)
    assert [row["method"] for row in rows][0] != [row["method"] for row in rows if row["group"] == "b"][0]


def test_drawn_answers_are_held_against_those_of_the_first_stack(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model", num_hidden_layers=2)
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"group": "a", "prompt": "the code of the room"}\n')
    path = bench.run_speculation(
        str(model), tmp_path / "out", data=data, dtype="float32", max_new_tokens=24,
        stacks=["none", "recycling"], lookups=["5,2"], temperature=1.5,
    )  # fmt: skip
    rows = {row["method"]: row for row in map(json.loads, path.read_text().splitlines())}
    assert rows["none"]["same"] and rows["recycling"]["same"] and rows["recycling"]["temperature"] == 1.5
    assert not rows["hf"]["same"], "it draws other tokens from the same law"


def test_the_summary_is_a_mean_of_ratios_and_takes_the_best_setting_of_prompt_lookup() -> None:
    def row(prompt: int, method: str, speed: float) -> dict[str, Any]:
        return {"group": "a", "prompt": prompt, "method": method, "new_tokens": 9, "tokens_per_second": speed}

    rows = [
        row(0, "hf", 10), row(0, "auto", 20), row(0, "hf_lookup:5,2", 15), row(0, "hf_lookup:10,2", 5),
        row(1, "hf", 1), row(1, "auto", 8), row(1, "hf_lookup:5,2", 1.5), row(1, "hf_lookup:10,2", 0.5),
    ]  # fmt: skip
    found = bench.summary(rows)["a"]
    assert found["hf"] == pytest.approx(1) and found["auto"] == pytest.approx(4)
    assert found["hf_lookup"] == pytest.approx(1.5)


def test_the_built_in_prompts_have_every_task_as_often_as_asked() -> None:
    prompts = bench.built_in(3)
    assert len(prompts) == 12 and len({prompt.text for prompt in prompts}) == 12
    assert all(sum(p.group == group for p in prompts) == 3 for group in ("quote", "summary", "question", "free"))


def test_a_line_that_is_no_prompt_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"group": "a", "prompt": "x"}\n{"group": "a"}\n')
    with pytest.raises(UsageError, match="line 2"):
        bench.read(path)


def test_the_watch_tells_the_first_tokens_from_the_prompt_and_the_rest() -> None:
    watch = bench.Watch()
    for count in (5, 2, 1):
        watch.put(torch.zeros(count))
    timed = watch.timed(watch.came[1][0] - 1.0, [1, 2, 3], {})
    assert timed.first == 2 and timed.first_seconds == pytest.approx(1.0) and timed.seconds >= 1.0


@pytest.mark.parametrize("stack", ["none,auto", "document+nonsense", "document:nonsense=1"])
def test_a_stack_that_there_is_not_is_refused_before_a_model_is_loaded(stack: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        bench.run_speculation("no/such/model", tmp_path, stacks=["none", "document+ngram", stack])


def test_a_setting_of_prompt_lookup_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="5,2"):
        bench.methods_of(None, None, [], ["ten"])
