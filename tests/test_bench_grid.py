"""A grid from file to rows: what is resumed, refused, left for later, and what no row ever holds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import grids
import pytest

from longctx.commands import jobs
from longctx.commands.screen import Screen
from longctx.commands.settings import Settings
from longctx.errors import ArtifactError, ProgramError, UnknownMethod, UsageError
from longctx.pipelines import bench_file, bench_grid, bench_methods, bench_peers

VARIES = ("seconds", "load_seconds", "loaded_bytes", "peak_bytes", "peak_of", "load_average", "date")
METHODS = ("hf:full", "hf:truncated")


@pytest.fixture(autouse=True)
def _calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls"))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def same(path: Path) -> list[dict[str, Any]]:
    """The rows without what the clock and the machine put into them."""
    return [{name: value for name, value in row.items() if name not in VARIES} for row in rows(path)]


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def test_every_method_answers_every_example_from_one_prompt(tmp_path: Path) -> None:
    path = grids.run(tmp_path, grids.write_grid(tmp_path, *METHODS))()
    found = rows(path)
    assert [(row["method"], row["example"]) for row in found] == [
        (method, f"seed 0, fact {fact}") for fact in (0, 1) for method in METHODS
    ]
    assert all(row["score"] == 1.0 and row["program"] == {"versions": {"fake": "1"}} for row in found)
    assert [row["kept"] for row in found if row["example"] == "seed 0, fact 0"] == [1.0, 1.0]
    assert [row["kept"] for row in found if row["example"] == "seed 0, fact 1"] == [0.0, 0.0]
    for fact in (0, 1):
        asked = {row["prompt_sha256"] for row in found if row["example"] == f"seed 0, fact {fact}"}
        assert len(asked) == 1
    assert all(row["seconds"]["total"] >= 0 and row["peak_bytes"] > 0 for row in found)
    assert {row["made_with"]["method"]["spec"] for row in found} == {"full", "truncated"}
    assert (tmp_path / "out" / "grid.md").is_file() and (tmp_path / "out" / "grid.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_that_was_stopped_goes_on_and_equals_one_that_was_not(tmp_path: Path) -> None:
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = grids.run(tmp_path / "whole", grids.write_grid(tmp_path / "whole", *METHODS))()
    before = calls(tmp_path)
    grid = grids.write_grid(tmp_path / "stopped", *METHODS)

    def stop(stage: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grids.run(tmp_path / "stopped", grid, progress=stop)()
    path = tmp_path / "stopped" / "out" / "grid.jsonl"
    assert len(rows(path)) == 3
    path.write_bytes(path.read_bytes()[:-20])  # and its last line was cut short
    grids.run(tmp_path / "stopped", grid)()
    assert same(path) == same(whole) and len(rows(whole)) == 4
    assert calls(tmp_path) - before == 3 + 2, "a row that was there was asked again"
    held = path.read_bytes()
    grids.run(tmp_path / "stopped", grid)()
    assert path.read_bytes() == held


def test_rows_of_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    grid = grids.write_grid(tmp_path, "hf:full")
    path = grids.run(tmp_path, grid)()
    held = path.read_bytes()
    (tmp_path / "grid.toml").write_text((tmp_path / "grid.toml").read_text().replace("max_new_tokens = 8", ""))
    with pytest.raises(ArtifactError, match="max_new_tokens was 8 and is 64"):
        grids.run(tmp_path, bench_file.read(tmp_path / "grid.toml"))()
    (tmp_path / "grid.toml").write_text(grids.GRID.format(methods='"hf:full"'))
    (tmp_path / "words.txt").write_text(grids.WORDS + "More.")
    with pytest.raises(ArtifactError, match="haystack_sha256"):
        grids.run(tmp_path, grid)()
    assert path.read_bytes() == held


def test_a_method_that_changed_nothing_is_refused_and_stands_in_no_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRUNCATED", "same")
    path = grids.run(tmp_path, grids.write_grid(tmp_path, *METHODS))()
    refused = [row for row in rows(path) if row["method"] == "hf:truncated"]
    assert all(row["score"] is None for row in refused)
    assert refused[0]["refused"] == {"kind": "unchanged", "message": "nothing was left out"}
    table = (tmp_path / "out" / "grid.md").read_text()
    line = next(line for line in table.splitlines() if "hf:truncated" in line)
    assert "2 unchanged" in line and "%" not in line


def test_a_program_that_dies_is_given_up_after_three_rows_which_the_next_run_makes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grids.write_grid(tmp_path, *METHODS)
    (tmp_path / "grid.toml").write_text(
        (tmp_path / "grid.toml").read_text().replace("depths = 2", "depths = 3").replace("[300]", "[200, 300]")
    )
    grid = bench_file.read(tmp_path / "grid.toml")
    monkeypatch.setenv("FAKE_FULL", "die")
    path = grids.run(tmp_path, grid)()
    kinds = [row["error"]["kind"] for row in rows(path) if row["method"] == "hf:full"]
    assert kinds == ["ValueError"] * 3 + ["not tried"] * 3
    assert "secret" not in path.read_text()
    assert sum(row["score"] == 1.0 for row in rows(path)) == 6
    monkeypatch.delenv("FAKE_FULL")
    grids.run(tmp_path, grid)()
    assert all(row["score"] == 1.0 for row in rows(path)) and len(rows(path)) == 12


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer llama.cpp is the fake program, run by this Python."""
    made = bench_peers.peer("llama.cpp")

    class Fake(bench_peers.Peer):
        def command(self, python: Path) -> list[str]:
            return grids.program(tmp_path)

    def peer(name: str) -> bench_peers.Peer:
        return Fake(made.name, made.module, made.requires, made.options, made.files)

    monkeypatch.setattr(bench_peers, "peer", peer)
    monkeypatch.setattr(bench_peers, "environment", lambda *given: Path("python"))


@pytest.mark.usefixtures("peers")
def test_a_peer_is_measured_when_its_copy_of_the_model_is_ours(tmp_path: Path) -> None:
    grid = grids.write_grid(tmp_path, "peer:llama.cpp")
    found = rows(grids.run(tmp_path, grid)())
    assert [row["same_next_tokens"] for row in found] == [1.0, 1.0] and all(row["score"] == 1.0 for row in found)
    assert found[0]["made_with"]["requires"] == ["llama-cpp-python==0.3.36"]


@pytest.mark.usefixtures("peers")
def test_a_peer_that_computes_another_model_is_refused(tmp_path: Path) -> None:
    run = grids.run(tmp_path, grids.write_grid(tmp_path, "peer:llama.cpp"))
    run._expected = [6] * len(run.model.context(bench_grid.examples(run.grid, run.model)[0].text)[:512])
    found = rows(run())
    assert [row["refused"]["kind"] for row in found] == ["refused"] * 2 and calls_none(tmp_path)
    assert "agrees with ours on 14%" in found[0]["refused"]["message"]


def calls_none(folder: Path) -> bool:
    return not (folder / "calls").exists()


@pytest.mark.usefixtures("peers")
def test_a_peer_that_cannot_be_installed_or_loaded_has_rows_that_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grids.write_grid(tmp_path, "peer:llama.cpp:gguf=refuse", "hf:full")
    method = bench_methods.Method("peer:llama.cpp", "peer", "llama.cpp", None, {"gguf": "refuse"})
    grid = dataclasses.replace(grid, methods=(method, grid.methods[1]))
    path = grids.run(tmp_path, grid)()
    first = next(row for row in rows(path) if row["method"] == "peer:llama.cpp")
    assert first["refused"]["message"] == "not this model, in model", "a path stands in a row"
    path.unlink()

    def fails(*given: object) -> Path:
        raise ProgramError("unavailable", "pip could not install it.")

    monkeypatch.setattr(bench_peers, "environment", fails)
    found = rows(grids.run(tmp_path, grid)())
    errors = [row["error"]["kind"] for row in found if row["method"] == "peer:llama.cpp"]
    assert errors == ["unavailable"] * 2 and sum(row["score"] == 1.0 for row in found) == 2


def test_no_row_holds_text_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRUNCATED", "die")
    data = tmp_path / "data" / "freeform"
    data.mkdir(parents=True)
    example = {
        "question": "Whose teapot is it?",
        "answers": ["Ottilie"],
        "document": "The teapot is that of Ottilie. " * 9,
    }
    (data / "rows.jsonl").write_text(json.dumps(example) + "\n")
    grids.write_grid(tmp_path, *METHODS)
    with (tmp_path / "grid.toml").open("a") as file:
        file.write('[[suite]]\nsuite = "freeform"\ndata = "data"\n')
    run = grids.run(tmp_path, bench_file.read(tmp_path / "grid.toml"))
    path = run()
    examples = bench_grid.examples(run.grid, run.model)
    assert {row["task"] for row in rows(path)} == {"single", "freeform/freeform"}
    text = path.read_text()
    words = {word for one in examples for word in (*one.text.split(), *one.prompt.split()) if len(word) > 6}
    assert {"Ottilie.", "Sentence"} <= words
    said = {word for row in rows(path) for word in _strings({k: v for k, v in row.items() if k != "made_with"})}
    assert not {word for word in words if any(word in string for string in said)}
    assert str(tmp_path) not in text and "Ottilie" not in text and "teapot" not in text


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [each for part in value.values() for each in _strings(part)]
    if isinstance(value, list):
        return [each for part in value for each in _strings(part)]
    return [value] if isinstance(value, str) else []


def test_the_command_takes_a_name_or_a_file(tmp_path: Path) -> None:
    screen = Screen(quiet=True)
    with pytest.raises(UnknownMethod, match="nothing"):
        jobs.bench("nothing", tmp_path, None, Settings(), screen)
    with pytest.raises(UsageError, match="cannot be read"):
        jobs.bench(str(tmp_path / "none.toml"), tmp_path, None, Settings(), screen)
    with pytest.raises(UsageError, match="its own data"):
        jobs.bench("grid.toml", tmp_path, tmp_path, Settings(), screen)
    grids.write_grid(tmp_path, "hf:full")
    with pytest.raises(UsageError, match="local folders"):
        jobs.bench(str(tmp_path / "grid.toml"), tmp_path / "out", None, Settings(model="some/where"), screen)
    (tmp_path / "grid.toml").write_text((tmp_path / "grid.toml").read_text().replace("[grid]", '[grid]\nmodels=["x"]'))
    with pytest.raises(UsageError, match="Leave one of them out"):
        jobs.bench(str(tmp_path / "grid.toml"), tmp_path / "out", None, Settings(model="some/where"), screen)
    assert not (tmp_path / "out").exists()


def test_what_a_configuration_says_for_nothing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(model="m", kv="full", dtype="float32", limits={"pages": 3})
    with pytest.raises(UsageError, match="cannot be read"):
        jobs.bench(str(tmp_path / "none.toml"), tmp_path, None, settings, Screen(quiet=True))
    assert "not used here, though the configuration has it: dtype, kv, limits." in capsys.readouterr().err
    with pytest.raises(UsageError):
        jobs.bench(str(tmp_path / "none.toml"), tmp_path, None, Settings(model="m"), Screen(quiet=True))
    assert capsys.readouterr().err == ""
