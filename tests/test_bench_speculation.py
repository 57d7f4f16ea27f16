"""The benchmark of drafting: its rows say what was measured, and whether the tokens were the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

import longctx
from longctx.errors import ArtifactError, EmptyInput, UsageError
from longctx.generated import Stats
from longctx.pipelines import bench_speculation as bench

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("models") / "model", num_hidden_layers=2)


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    """Two prompts and two of our stacks beside stock."""
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"group": "a", "prompt": "the code of the room"}\n{"group": "b", "prompt": "river street"}\n')
    stacks, lookups = ["none", "document+lookup"], ["10,2"]
    return {"data": data, "dtype": "float32", "max_new_tokens": 6, "stacks": stacks, "lookups": lookups}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_method_answers_every_prompt_and_says_whether_it_is_the_same(
    folder: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    del asked["lookups"]
    rows = rows_of(bench.run_speculation(str(folder), tmp_path / "out", **asked))
    names = {"hf", "none", "document+lookup", *(f"hf_lookup:{setting}" for setting in bench.LOOKUPS)}
    assert {(row["group"], row["method"]) for row in rows} == {(group, name) for group in "ab" for name in names}
    assert all(row["same"] for row in rows) and all(1 <= row["new_tokens"] <= 6 for row in rows)
    drafted = next(row for row in rows if row["method"] == "document+lookup")
    assert set(drafted["accepted_by_source"]) == {"document", "lookup"} and drafted["phases"]["verify_seconds"] > 0
    assert all(0 < row["first_seconds"] <= row["seconds"] for row in rows)
    assert [row["method"] for row in rows][0] != [row["method"] for row in rows if row["group"] == "b"][0]


def test_a_row_says_what_was_asked_with_what_and_in_how_much_memory(
    folder: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    rows = rows_of(bench.run_speculation(str(folder), tmp_path / "out", **asked))
    ids = {}
    for number, text in enumerate(("the code of the room", "river street")):
        turns = [{"role": "user", "content": text}]
        ids[number] = tiny.tokenizer("system").apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    for row in rows:
        assert row["prompt_sha256"] == hashlib.sha256(json.dumps(ids[row["prompt"]]).encode()).hexdigest()
        assert "seed" not in row and "seed" not in row["made_with"], "nothing is drawn"
        assert (row["loaded_bytes"] is None) == (row["peak_bytes"] is None)
        assert row["peak_bytes"] is None or row["peak_bytes"] > 0.9 * row["loaded_bytes"] > 0  # the kernel rounds both
        made = {"model": "model", "dtype": "float32", "device": "cpu", "threads": 1, "max_new_tokens": 6}
        assert made.items() <= row["made_with"].items()
        assert row["made_with"]["methods"] == ["hf", "hf_lookup:10,2", "none", "document+lookup"]
    assert all(row["rounds"] == row["new_tokens"] and row["drafted"] == 0 for row in rows if row["method"] == "hf")
    lookups = [row for row in rows if row["method"] == "hf_lookup:10,2"]
    assert all(row["drafted"] >= row["new_tokens"] - row["rounds"] for row in lookups)
    assert any(row["drafted"] for row in lookups), "the prompt says some of its words twice"


@pytest.mark.parametrize("kept", [1, 3, 5, 7])
def test_an_interrupted_run_goes_on_with_whole_prompts(
    kept: int, folder: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    assert set(bench.methods_of(None, None, ["none"], ["none"])) == {"hf", "none"}
    asked |= {"stacks": ["none"], "lookups": ["5,2", "10,2"]}  # neither is idle, whatever the clock says
    path = bench.run_speculation(str(folder), tmp_path, **asked)
    rows = rows_of(path)
    assert [row["prompt"] for row in rows] == [0] * 4 + [1] * 4 and not any("refused" in row for row in rows)
    lines = [json.dumps({**row, "old": True}) + "\n" for row in rows]
    path.write_text("".join(lines[:kept]) + lines[kept][:40])
    again = rows_of(bench.run_speculation(str(folder), tmp_path, **asked))
    names = ("prompt", "method", "same", "prompt_sha256", "made_with")
    assert [[row[name] for name in names] for row in again] == [[row[name] for name in names] for row in rows]
    assert [row.get("old", False) for row in again] == [kept >= 4] * 4 + [False] * 4, "a prompt is timed in one run"
    before = path.read_bytes()
    assert bench.run_speculation(str(folder), tmp_path, **asked).read_bytes() == before, "all rows are there"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_new_tokens": 7}, "max_new_tokens was 6 and is 7"),
        ({"dtype": "bfloat16"}, "dtype was 'float32' and is 'bfloat16'"),
        ({"stacks": ["none"]}, r"methods was \[.*'document\+lookup'\] and is \[.*'none'\]\. Name another"),
        ({"temperature": 0.5}, "temperature was None and is 0.5; seed was None and is 0"),
        ({"data": "a"}, "prompts_sha256 was '.*' and is '.*'"),
        ({"data": "group"}, "prompts_sha256 was '.*' and is '.*'"),
    ],
)
def test_rows_made_otherwise_are_refused_with_the_difference(
    changed: dict[str, Any], said: str, folder: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    path = bench.run_speculation(str(folder), tmp_path, **asked)
    before = path.read_bytes()
    if "data" in changed:
        other = tmp_path / "other.jsonl"
        old, new = ("river", "winter") if changed["data"] == "a" else ('"b"', '"c"')
        other.write_text(asked["data"].read_text().replace(old, new))
        changed = {"data": other}
    with pytest.raises(ArtifactError, match=said):
        bench.run_speculation(str(folder), tmp_path, **{**asked, **changed})
    assert path.read_bytes() == before


def test_rows_of_another_model_seed_or_release_are_refused(folder: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    asked |= {"temperature": 1.0, "seed": 5}
    path = bench.run_speculation(str(folder), tmp_path, **asked)
    with pytest.raises(ArtifactError, match="seed was 5 and is 6"):
        bench.run_speculation(str(folder), tmp_path, **{**asked, "seed": 6})
    other = tiny.save(tmp_path / "model", num_hidden_layers=1)
    with pytest.raises(ArtifactError, match="line 1 was made with other settings: fingerprint was '.*' and is '.*'"):
        bench.run_speculation(str(other), tmp_path, **asked)
    path.write_text(path.read_text().replace('"torch": "', '"torch": "0.'))
    with pytest.raises(ArtifactError, match="torch was '0.*' and is "):
        bench.run_speculation(str(folder), tmp_path, **asked)
    path.write_text('{"bench": "speculation", "prompt": 0, "method": "hf", "model": "model"}\n')
    with pytest.raises(ArtifactError, match="line 1 has no made_with"):
        bench.run_speculation(str(folder), tmp_path, **asked)


def test_drawn_answers_are_held_against_those_of_the_first_stack(
    folder: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    asked |= {"max_new_tokens": 24, "stacks": ["none", "recycling"], "temperature": 1.5, "seed": 3}
    found = rows_of(bench.run_speculation(str(folder), tmp_path / "out", **asked))
    rows = {row["method"]: row for row in found if row["prompt"] == 0}
    assert rows["none"]["same"] and rows["recycling"]["same"] and rows["recycling"]["made_with"]["temperature"] == 1.5
    assert not rows["hf"]["same"], "it draws other tokens from the same law"
    assert all(row["seed"] == 3 + row["prompt"] and row["made_with"]["seed"] == 3 for row in found)


def test_a_seed_draws_the_same_tokens_again_and_no_other_generator_is_touched(folder: Path) -> None:
    reader = longctx.Reader.from_pretrained(str(folder), dtype="float32", encoder=None, calibration=None)
    methods = bench.methods_of(reader.model, reader.tokenizer, ["none", "lookup"], ["10,2"], 1.5)
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7]])
    before = torch.get_rng_state()
    for name, answer in methods.items():
        drawn = [answer(ids, 24, seed).tokens for seed in (1, 2, 1)]
        assert drawn[0] == drawn[2] != drawn[1], name
    assert torch.equal(torch.get_rng_state(), before)


def test_a_method_that_drafted_nothing_in_a_whole_run_is_refused_by_name(
    folder: Path, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    counts = {"hf": [0, 0], "hf_lookup:10,2": [0, 3], "none": [0, 0], "document+lookup": [0, 0]}

    def methods(*given: Any) -> dict[str, Any]:
        def method(drafted: list[int]) -> Any:
            left = iter(drafted)
            return lambda ids, new, seed: bench.Timed([4, 5], 1, 0.1, 0.2, {"drafted": next(left)})

        return {name: method(drafted) for name, drafted in counts.items()}

    monkeypatch.setattr(bench, "methods_of", methods)
    path = bench.run_speculation(str(folder), tmp_path, **asked)
    rows = rows_of(path)
    refused = {"kind": "unchanged", "message": "no token was drafted for any of 2 prompts"}
    for row in rows:
        idle = row["method"] == "document+lookup"
        assert row.get("refused") == (refused if idle else None)
        assert (row["tokens_per_second"] is None) == idle and row["decode_seconds"] > 0
    said = "warning: document+lookup: no token was drafted for any of 2 prompts. Its rows are refused.\n"
    assert [line for line in capsys.readouterr().err.splitlines(True) if "warning" in line] == [said]
    found = bench.summary(rows)
    assert all("document+lookup" not in by and {"hf", "none", "hf_lookup"} <= set(by) for by in found.values())
    before = path.read_bytes()
    assert bench.run_speculation(str(folder), tmp_path, **asked).read_bytes() == before
    assert said in capsys.readouterr().err, "it is said again by a run that has nothing to add"


def test_a_run_that_is_not_done_refuses_no_method(
    folder: Path, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What drafts nothing for the first prompt may draft for the second."""
    answer = bench.rows_of

    def first_only(prompt: Any, number: int, *given: Any) -> Any:
        if number:
            raise KeyboardInterrupt
        return [{**row, "drafted": 0} for row in answer(prompt, number, *given)]

    monkeypatch.setattr(bench, "rows_of", first_only)
    with pytest.raises(KeyboardInterrupt):
        bench.run_speculation(str(folder), tmp_path, **asked)
    rows = rows_of(tmp_path / "speculation.jsonl")
    assert len(rows) == 4 and not any("refused" in row for row in rows)


def test_the_bench_warms_until_an_answer_asks_the_model_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    drafting, asked = iter((1.0, 0.9, 0.01, 1.0)), list[int]()

    def generate(*given: Any, max_new_tokens: int, **how: Any) -> Any:
        asked.append(max_new_tokens)
        return SimpleNamespace(stats=Stats(seconds={"draft": next(drafting)}))

    monkeypatch.setattr(bench.longctx, "generate", generate)
    bench._warm(SimpleNamespace(model=None, tokenizer=None))
    assert len(asked) == 3 and min(asked) > 16, "shorter answers ask nothing in any case"


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
    path.write_text("")
    with pytest.raises(EmptyInput, match="bad.jsonl is empty"):
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
