"""What a command says of mistakes, and how settings come together."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from cli_runs import QUESTION, asked, call

from longctx.commands.settings import Settings, count
from longctx.errors import MissingExtra, installing

pytestmark = pytest.mark.usefixtures("one_thread")


# --- mistakes -------------------------------------------------------------------------------------------------------


def write_bad_files(folder: Path) -> None:
    (folder / "empty.txt").write_bytes(b"")
    (folder / "blank.txt").write_text(" \n\t\n")
    (folder / "long.txt").write_text("The room has a number and a letter. " * 1000)
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 40)
    (folder / "cut.pdf").write_bytes(b"%PDF-1.7\n1 0 obj\n<< /Type /Cat")
    (folder / "cut.docx").write_bytes(b"PK\x03\x04\x14\x00\x00\x00")
    (folder / "folder").mkdir()
    (folder / "unknown.toml").write_text("bugdet = 100\n")
    (folder / "wrong.toml").write_text("budget = true\n")
    (folder / "perhaps.toml").write_text("kv_partial = 1\n")
    (folder / "broken.toml").write_text("budget = \n")
    for name, extra in (("nomodel", None), ("pickled", "pytorch_model.bin"), ("remote", "model.safetensors")):
        (folder / name).mkdir()
        if extra is not None:
            (folder / name / extra).write_bytes(b"x")
            (folder / name / "config.json").write_text(
                '{"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}'
                if name == "remote"
                else '{"model_type": "llama"}'
            )
            (folder / name / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")


MISTAKES: list[tuple[list[str], int, str]] = [
    (["empty.txt", QUESTION], 2, "empty"),
    (["blank.txt", QUESTION], 2, "no text"),
    (["binary.txt", QUESTION], 1, "binary"),
    (["cut.pdf", QUESTION], 1, "cut.pdf"),
    (["cut.docx", QUESTION], 1, "cut.docx"),
    (["missing.txt", QUESTION], 1, "no file"),
    (["folder", QUESTION], 2, "is a folder"),
    (["story.txt", "  "], 2, "question is empty"),
    (["story.txt"], 2, 'FILE... "QUESTION"'),
    (["story.txt", "story.txt"], 2, "is a file"),
    (["story.txt", "why " * 5000], 3, "window is 4096"),
    (["story.txt", QUESTION, "--budget", "0"], 2, "budget_tokens=0"),
    (["long.txt", QUESTION, "--budget", "1M"], 3, "at most"),
    (["story.txt", QUESTION, "--budget", "many"], 2, "not a count"),
    (["story.txt", QUESTION, "--max-new-tokens", "0"], 2, "max_new_tokens=0"),
    (["story.txt", QUESTION, "--temperature", "-1"], 2, "temperature=-1"),
    (["story.txt", QUESTION, "--selector", "bm26"], 2, "Known: auto, bm25"),
    (["story.txt", QUESTION, "--selector", "bm25:depth=2"], 2, "Its options: neighbours"),
    (["story.txt", QUESTION, "--selector", "bm25:neighbours=much"], 2, "not float"),
    (["story.txt", QUESTION, "--selector", "auto:likelihood=nan"], 2, "not a finite number"),
    (["story.txt", QUESTION, "--drafters", "none+document"], 2, "stands for no method"),
    (["story.txt", QUESTION, "--selector", "all", "--max-new-tokens", "4000"], 3, "window"),
    (["story.txt", QUESTION, "--dtype", "int3"], 2, "dtype 'int3'"),
    (["story.txt", QUESTION, "--device", "abacus"], 2, "device 'abacus'"),
    (["story.txt", QUESTION, "--model", "nomodel"], 1, "no config.json"),
    (["story.txt", QUESTION, "--model", "story.txt"], 1, "is a file"),
    (["story.txt", QUESTION, "--model", "pickled"], 1, "pickled"),
    (["story.txt", QUESTION, "--model", "remote"], 1, "never run"),
    (["story.txt", QUESTION, "--plot", "looked.jpg"], 2, ".png"),
    (["story.txt", QUESTION, "--plot", "nowhere/looked.png"], 2, "no folder"),
    (["story.txt", QUESTION, "--config", "unknown.toml"], 2, "Did you mean 'budget'?"),
    (["story.txt", QUESTION, "--config", "wrong.toml"], 2, "is not int"),
    (["story.txt", QUESTION, "--config", "perhaps.toml"], 2, "kv_partial=1 is not bool"),
    (["story.txt", QUESTION, "--config", "broken.toml"], 2, "not TOML"),
    (["story.txt", QUESTION, "--config", "missing.toml"], 2, "cannot be read"),
    (["story.txt", QUESTION, "--questions", "fast.toml"], 2, "go together"),
    (["story.txt", QUESTION, "--speed", "9"], 2, "No such option"),
]


@pytest.mark.parametrize(("words", "code", "said"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_named_with_its_exit_code_and_leaves_nothing(
    words: list[str], code: int, said: str, model: Path, folder: Path
) -> None:
    write_bad_files(folder)
    before = sorted(folder.rglob("*"))
    fixed = ["--json", "--quiet"]
    fixed += [] if "--model" in words else ["--model", str(model)]
    fixed += [] if "--config" in words else ["--config", "fast.toml"]
    fixed += [] if "--selector" in words else ["--selector", "bm25"]
    ran = call("ask", *words, *fixed)
    assert ran.exit_code == code, ran.output
    flat = " ".join(ran.stderr.replace("│", " ").split())
    assert said in flat and "Traceback" not in ran.stderr
    assert ran.stdout == "" and ran.exc_info[0] is SystemExit
    assert sorted(folder.rglob("*")) == before


def test_a_model_named_twice_and_an_unknown_room_or_suite_are_refused(model: Path, folder: Path) -> None:
    assert call("doctor", str(model), "--model", "embedded").exit_code == 2
    room = call("list", "kitchens")
    assert room.exit_code == 2 and "Known: splitters, selectors" in room.stderr
    suite = call("eval", "weather", "--data", ".", "--out", "out")
    assert suite.exit_code == 2 and "Known: selection" in suite.stderr
    assert call("plan", str(model), "--tokens", "0").exit_code == 2


def test_a_missing_extra_says_what_to_install(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longctx.plotting.find_spec", lambda name: None)
    ran = asked(model, "story.txt", QUESTION, "--plot", "looked.png")
    assert ran.exit_code == MissingExtra.exit_code == 1 and installing("plots") in ran.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "some.file"), 1, "some.file: No space left on device. Free"),
        (PermissionError(errno.EACCES, "Permission denied", "some.file"), 1, "Choose a place"),
        (MemoryError(), 3, "longctx plan"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 3, "longctx plan"),
        (KeyboardInterrupt(), 130, "stopped."),
    ],
)
def test_what_the_machine_refuses_is_a_message(
    error: BaseException, code: int, said: str, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("longctx.commands.ask.open_reader", fail)
    ran = asked(model, "story.txt", QUESTION)
    assert ran.exit_code == code and said in ran.stderr and ran.exc_info[0] is SystemExit


def test_a_fault_of_our_own_is_not_hidden(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("longctx.commands.ask.open_reader", fail)
    assert isinstance(asked(model, "story.txt", QUESTION).exception, RuntimeError)


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("2048", 2048), ("4k", 4000), ("1M", 1_000_000), ("1.5K", 1500), ("1,000", 1000), ("2_000", 2000), (" 7 ", 7)],
)
def test_counts_are_decimal(text: str, value: int) -> None:
    assert count(text) == value


@pytest.mark.parametrize("text", ["", "k", "4kb", "-3", "1.5", "0.0001k", "nan", "1e3"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        count(text)


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    from longctx.commands.settings import merge

    file = tmp_path / "longctx.toml"
    file.write_text('model = "a"\nbudget = "4k"\ntemperature = 1\n')
    merged = merge(file, {"model": "b", "budget": None})
    assert (merged.model, merged.budget, merged.temperature, merged.selector) == ("b", 4000, 1, Settings().selector)
