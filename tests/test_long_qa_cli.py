"""``longctx eval`` and the suites of questions: what the command line and the configuration file hand on or refuse."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from answer_rows import rows
from rooms import written
from typer import BadParameter
from typer.testing import CliRunner

from longctx.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")

eval_flags = importlib.import_module("longctx.commands.eval_flags")
long_qa = importlib.import_module("longctx.pipelines.long_qa")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return written(tmp_path)


def test_the_command_runs_a_suite_and_names_them_all(data: Path, tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model", num_hidden_layers=2)
    config = tmp_path / "fast.toml"
    config.write_text('calibration = "none"\nencoder = "none"\nsegment_tokens = 64\n')
    words = ["eval", "freeform", "--data", str(data), "--out", str(tmp_path / "out"), "--model", str(model), "--json"]
    words += ["--config", str(config), "--system", "bm25:neighbours=0.5", "--system", "closed_book", "--sample", "2"]
    words += ["--budgets", "130,0.2k", "--max-new-tokens", "2", "--quiet"]
    dry = CliRunner().invoke(app, [*words, "--dry-run"])
    assert dry.exit_code == 0 and json.loads(dry.stdout)["rows"] == 6, dry.output
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code == 0, ran.output
    found = rows(Path(json.loads(ran.stdout)["out"]))
    assert {(row["system"], row["budget"]) for row in found} == {
        ("bm25:neighbours=0.5", 130),
        ("bm25:neighbours=0.5", 200),
        ("closed_book", 0),
    }
    assert found[0]["configuration"]["segment_tokens"] == 64
    assert "| closed_book | 0 | 2 |" in (tmp_path / "out" / "freeform.md").read_text()
    refused = CliRunner().invoke(app, [*words, "--sets", "loogle"])
    assert refused.exit_code == 2 and "--sets is not for the suite" in " ".join(refused.stderr.split())
    listed = CliRunner().invoke(app, ["eval", "--list"])
    assert listed.stdout.split() == ["selection", *long_qa.suites()]
    for order in (["--list", "--json"], ["--json", "--list"]):
        (line,) = CliRunner().invoke(app, ["eval", *order]).stdout.splitlines()
        assert json.loads(line) == {"suites": ["selection", *long_qa.suites()]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a suite is needed; --list names them"),
        (["freeform"], "--data DIR is needed"),
        (["freeform", "--out", "."], "--data DIR is needed"),
    ],
)
def test_what_a_suite_needs_is_asked_for(words: list[str], said: str) -> None:
    ran = CliRunner().invoke(app, ["eval", *words])
    assert ran.exit_code == 2 and said in " ".join(ran.stderr.replace("│", " ").split())


def configured(folder: Path, text: str, *words: str) -> Any:
    """What the command answers under a configuration file; one system, one question."""
    model = tiny.save(folder / "model", num_hidden_layers=2)
    file = folder / "longctx.toml"
    file.write_text('calibration = "none"\nencoder = "none"\nsegment_tokens = 64\n' + text)
    given = ["eval", "freeform", "--data", str(folder / "data"), "--out", str(folder / "out"), "--model", str(model)]
    given += ["--config", str(file), "--sample", "1", "--json", "--quiet", *words]
    return CliRunner().invoke(app, given)


def test_the_configuration_file_holds_where_no_flag_is_given(data: Path, tmp_path: Path) -> None:
    """Budget, length and seed of the file were replaced by the job's own, and nothing said so."""
    text = 'budget = "0.15k"\nmax_new_tokens = 2\nseed = 3\n'
    ran = configured(tmp_path, text, "--system", "head")
    assert ran.exit_code == 0, ran.output
    (row,) = rows(Path(json.loads(ran.stdout)["out"]))
    assert (row["budget"], row["max_new_tokens"], row["seed"]) == (150, 2, 3)
    ran = configured(
        tmp_path, text, "--system", "head", "--budgets", "130", "--max-new-tokens", "1", "--seed", "4", "--out",
        str(tmp_path / "flags"),
    )  # fmt: skip
    (row,) = rows(Path(json.loads(ran.stdout)["out"]))
    assert (row["budget"], row["max_new_tokens"], row["seed"]) == (130, 1, 4)


def test_what_an_evaluation_cannot_take_from_the_configuration_is_said(data: Path, tmp_path: Path) -> None:
    refused = configured(tmp_path, "temperature = 0.9\n", "--system", "head")
    assert refused.exit_code == 2 and "temperature=0.9" in " ".join(refused.stderr.split())
    assert not (tmp_path / "out").exists()
    warned = configured(tmp_path, 'selector = "bm25"\n', "--dry-run")  # and then that dense has no encoder
    assert "selector='bm25' of the configuration is not used" in warned.stderr
    named = configured(tmp_path, 'selector = "bm25"\n', "--dry-run", "--system", "head")
    assert named.exit_code == 0 and "warning" not in named.stderr


FLAGS: dict[str, Any] = {"sets": "", "full_sample": 20, "paper_sample": 0, "stored": "", "systems": None, "budgets": ""}
FLAGS |= {"max_new_tokens": None, "seed": None, "keep_answers": False, "dry_run": False}


@pytest.mark.parametrize(
    ("suite", "given", "handed_on"),
    [
        ("selection", {}, {}),
        ("selection", {"stored": "int8"}, {"stored": "int8"}),
        ("selection", {"sets": "loogle,qmsum", "full_sample": 0}, {"sets": ("loogle", "qmsum"), "full_sample": 0}),
        ("leval", {"seed": 0, "budgets": "512,1k"}, {"seed": 0, "budgets": (512, 1000)}),
        ("leval", {"systems": ["bm25"], "max_new_tokens": "1k"}, {"systems": ["bm25"], "max_new_tokens": 1000}),
        ("leval", {"keep_answers": True, "dry_run": True}, {"keep_answers": True, "dry_run": True}),
    ],
)
def test_flags_reach_their_suite_also_where_they_are_zero(
    suite: str, given: dict[str, Any], handed_on: dict[str, Any]
) -> None:
    assert eval_flags.grid(suite, {**FLAGS, **given}) == handed_on


@pytest.mark.parametrize(
    ("suite", "given", "said"),
    [
        ("leval", {"full_sample": 0}, "--full-sample is not for the suite 'leval'"),
        ("selection", {"systems": ["bm25"]}, "--system is not for the suite 'selection'"),
        ("selection", {"seed": 0}, "--seed is not"),
        ("leval", {"budgets": "1k,many"}, "'many' is not a count"),
    ],
)
def test_flags_of_the_other_suites_are_refused(suite: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadParameter, match=said):
        eval_flags.grid(suite, {**FLAGS, **given})
