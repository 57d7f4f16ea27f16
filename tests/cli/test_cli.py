"""The command line: results on stdout, all else on stderr, an exit code for every outcome, never a traceback."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from cli_runs import NEEDLE, QUESTION, ROOT, asked, call, spawn, story
from rich.text import Text
from typer.main import get_command

import longctx
from longctx import plugins
from longctx.cli import app
from longctx.commands import ask, screen

pytestmark = pytest.mark.usefixtures("one_thread")


# --- start ----------------------------------------------------------------------------------------------------------


def test_help_costs_less_than_half_a_second_of_processor_time() -> None:
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = spawn("--help")
        shown, _ = ran.communicate()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert ran.returncode == 0 and "calibrate" in shown
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.5


@pytest.mark.parametrize(
    ("words", "unwanted"),
    [
        (["--help"], {"torch", "transformers", "numpy", "sklearn"}),
        (["ask", "--help"], {"torch", "transformers", "numpy", "sklearn"}),
        (["list"], {"torch", "transformers", "longctx.segmenters.selectors.bm25", "longctx.segmenters.splitters.auto"}),
    ],
)
def test_what_needs_no_model_loads_none(words: list[str], unwanted: set[str]) -> None:
    code = (
        f"import sys; sys.argv[1:] = {words!r}\n"
        "from longctx.cli import main\n"
        "try:\n    main()\n"
        f"finally:\n    print(*sorted({unwanted!r} & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.stdout and ran.stderr.strip() == "" and ran.returncode == 0


def test_the_version_is_that_of_the_package() -> None:
    ran = spawn("--version")
    assert ran.communicate() == (f"longctx {longctx.__version__}\n", "") and ran.returncode == 0


def test_listing_names_every_method_and_a_room_its_options() -> None:
    listed = json.loads(call("list", "--json").stdout)
    assert listed == {room: [*plugins.names(room), *plugins.WORDS.get(room, ())] for room in plugins.ROOMS}
    assert "all" in listed["selectors"] and "none" in listed["kv"] and {"auto", "none"} <= set(listed["drafters"])
    shown = call("list", "selectors").stdout
    assert "\nall: Everything" in shown
    assert all(f"{name}: " in shown for name in plugins.names("selectors")) and "neighbours=0.0" in shown
    found = json.loads(call("list", "selectors", "--json").stdout)["selectors"]
    assert found["bm25"]["options"] == {"neighbours": ["float", 0.0]} and found["bm25"]["about"].startswith("BM25")
    assert found["all"] == {"about": plugins.WORDS["selectors"]["all"], "options": {}}


def commands(group: Any) -> Iterator[Any]:
    for command in group.commands.values():
        yield command
        yield from commands(command) if hasattr(command, "commands") else ()


def test_no_help_text_loses_its_brackets() -> None:
    """A bracket before a letter is a style to rich, and what stood in it was not shown."""
    shown = 0
    for command in commands(get_command(app)):
        for text in (command.help, *(getattr(parameter, "help", None) for parameter in command.params)):
            plain = Text.from_markup(text or "").plain
            assert plain == (text or "").replace("\\[", "[") and not plain.endswith(" ."), (command.name, text)
            shown += plain.count("[")
    assert shown > 10
    assert "is drafted: [goodput], or another" in " ".join(call("generate", "--help").stdout.replace("│", " ").split())


# --- results --------------------------------------------------------------------------------------------------------


def test_json_is_one_object_on_stdout_and_progress_is_on_stderr(model: Path, folder: Path) -> None:
    ran = asked(model, "story.txt", QUESTION, "--json")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout.count("\n") == 1
    answer = json.loads(ran.stdout)
    assert answer["guarantee"] == "approximate" and answer["usage"]["selected_tokens"] <= 200
    text = story()
    assert NEEDLE in answer["selection"]["text"]
    for citation in answer["citations"]:
        assert text[citation["start"] : citation["end"]] == citation["quote"]
    assert "tokenising" in ran.stderr


def test_quiet_is_silent_and_the_libraries_below_are_too(model: Path, folder: Path) -> None:
    words = ["ask", "story.txt", QUESTION, "--model", str(model), "--config", "fast.toml", "--selector", "bm25"]
    ran = spawn(*words, "--budget", "200", "--max-new-tokens", "2", "--quiet")
    shown, said = ran.communicate()
    assert (ran.returncode, said) == (0, "") and shown


def test_the_answer_is_streamed_once_and_the_summary_counts_what_was_kept(model: Path, folder: Path) -> None:
    answer = json.loads(asked(model, "story.txt", QUESTION, "--json").stdout)
    ran = asked(model, "story.txt", QUESTION)
    assert ran.stdout.startswith(answer["text"] + "\n")
    assert ran.stdout.count("\n[") == len(answer["citations"])
    usage = answer["usage"]
    assert f"kept {usage['selected_tokens']:,} of {usage['document_tokens']:,} tokens" in ran.stderr
    assert "guarantee: approximate" in ran.stderr


def test_an_answer_without_citations_shows_the_passages_it_was_made_from(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "_QUOTE_CHARS", 90)  # a sentence fits, a passage does not
    answer = json.loads(asked(model, "story.txt", QUESTION, "--json").stdout)
    assert not answer["citations"], "the tiny model says nothing that stands in the text"
    shown = [line for line in asked(model, "story.txt", QUESTION).stdout.splitlines() if line.startswith("- ")]
    best = sorted(answer["selection"]["spans"], key=lambda span: -span["score"])[: len(shown)]
    text = story()
    assert 1 <= len(shown) <= 3
    assert any(NEEDLE in line for line in shown)
    for line, span in zip(shown, best, strict=True):
        assert line.startswith(f"- story.txt chars {span['start']}-{span['end']} ")
        own = text[span["start"] : span["end"]]
        quote = line.partition('"')[2].removesuffix('"').strip("… ")
        assert quote == NEEDLE if NEEDLE in own else own.startswith(quote[:40]) and own.endswith(quote[-40:])
    fast = ["--config", "fast.toml", "--max-new-tokens", "4", "--model", str(model)]
    everything = call("ask", "story.txt", QUESTION, "--budget", "3k", *fast)
    assert everything.exit_code == 0 and everything.stdout and "scored highest" not in everything.stdout


def test_a_share_of_a_short_file_is_answered_with_a_warning_and_a_budget_that_small_is_refused(
    model: Path, folder: Path
) -> None:
    (folder / "short.txt").write_text(NEEDLE * 4)
    whole = ("short.txt", QUESTION, "--selector", "all", "--kv")
    ran = call("ask", *whole, "squeezed:keep=0.125", "--model", str(model), "--max-new-tokens", "4")
    assert ran.exit_code == 0, ran.stderr
    assert "warning: squeezed: keep=0.125 is a budget of " in ran.stderr and "from 1,057 tokens on" in ran.stderr
    ran = call("ask", *whole, "squeezed:budget=20", "--model", str(model), "--max-new-tokens", "4")
    assert ran.exit_code == 2 and "always read" in ran.stderr


def test_a_flag_and_a_key_allow_layers_that_keep_no_keys(folder: Path) -> None:
    tiny.hybrid().save_pretrained(folder / "hybrid")
    tiny.tokenizer("system").save_pretrained(folder / "hybrid")
    (folder / "partial.toml").write_text('calibration = "none"\nencoder = "none"\nkv_partial = true\n')
    words = ["ask", "story.txt", QUESTION, "--selector", "all", "--kv", "squeezed:budget=200", "--max-new-tokens", "4"]
    words += ["--model", "hybrid", "--dtype", "float32"]
    refused = call(*words, "--config", "fast.toml")
    assert refused.exit_code == 1 and "0 (linear_attention)" in refused.stderr and "--kv-partial" in refused.stderr
    flag, key = call(*words, "--config", "fast.toml", "--kv-partial"), call(*words, "--config", "partial.toml")
    for ran in (flag, key):
        assert ran.exit_code == 0 and "left as they are: 0 (linear_attention)" in ran.stderr, ran.stderr
    assert flag.stdout == key.stdout


def test_answers_go_on_whether_or_not_layers_may_be_left_alone(model: Path, folder: Path) -> None:
    """What may be left alone changes whether there is an answer, and never what it is."""
    (folder / "questions.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n")
    many = ("story.txt", "--questions", "questions.jsonl", "--out", "answers.jsonl", "--kv", "squeezed:budget=150")
    for more in ((), ("--kv-partial",)):
        ran = asked(model, *many, *more)
        assert ran.exit_code == 0 and "1 rows" in ran.stdout, ran.output
    assert "1 of them from before" in ran.stdout
    row = json.loads((folder / "answers.jsonl").read_text())
    assert "error" not in row and "kv_partial" not in row["configuration"]


def test_citations_are_numbered_with_page_offsets_and_quote() -> None:
    from longctx.commands.ask import _citation
    from longctx.types import Citation

    citation = Citation("a.pdf", 10, 30, 4, "two\n words", 0.5)
    assert _citation(1, citation) == '[1] a.pdf p.4 chars 10-30 "two words" score 0.50'
    assert _citation(2, dataclasses.replace(citation, page=None)).startswith("[2] a.pdf chars 10-30 ")


def test_selecting_shows_the_spans_word_for_word(model: Path, folder: Path) -> None:
    flags = ["--model", str(model), "--config", "fast.toml", "--selector", "bm25", "--budget", "100"]
    ran = call("select", "story.txt", QUESTION, *flags)
    assert ran.exit_code == 0 and NEEDLE in ran.stdout and "--- story.txt chars " in ran.stdout
    found = json.loads(call("select", "story.txt", QUESTION, *flags, "--json").stdout)
    assert found["tokens"] <= 100 and NEEDLE in found["text"] and "profile" not in found


def test_the_embedded_model_answers(embedded_folder: Path, folder: Path) -> None:
    ran = call("ask", "story.txt", "In which room is the kettle?", "--selector", "bm25", "--budget", "300", "--json")
    assert ran.exit_code == 0, ran.stderr
    assert "4711" in json.loads(ran.stdout)["text"]


def test_a_plot_is_written_whole(model: Path, folder: Path) -> None:
    assert asked(model, "story.txt", QUESTION, "--plot", "looked.png").exit_code == 0
    assert (folder / "looked.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == ["fast.toml", "looked.png", "story.txt"]


# --- terminals and signals ------------------------------------------------------------------------------------------


class Terminal:
    """A stream that says it is a terminal, or not."""

    def __init__(self, terminal: bool) -> None:
        self.terminal, self.shown = terminal, ""

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> None:
        self.shown += text

    def flush(self) -> None:
        pass


def test_a_document_cannot_drive_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "a\x1b[2Jb\rc\x9bd\u202ee\x07f\ud800g\x00h\u2066i"
    plain = "Grüße, 漢字 🙂\n\tz"
    for terminal in (True, False):
        stream = Terminal(terminal)
        monkeypatch.setattr(sys, "stdout", stream)
        screen.Screen().line(evil + plain)
        assert stream.shown.endswith(plain + "\n")
        assert ("\x1b" in stream.shown) is not terminal
    shown = screen.visible(evil)
    assert shown == "a\\x1b[2Jb\\x0dc\\x9bd\\u202ee\\x07f\\ud800g\\x00h\\u2066i"


def test_lone_surrogates_and_narrow_encodings_do_not_stop_the_output(folder: Path) -> None:
    code = (
        "from longctx.commands.screen import Screen\n"
        "Screen().line('a\\ud800 \\u6f22')\n"
        "Screen().result({'a': '\\ud800'})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0 and ran.stdout == 'a\\ud800 \\u6f22\n{"a": "\\ud800"}\n'


def until(stream: Any, said: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while said not in stream.readline():
        assert time.monotonic() < end


@pytest.mark.parametrize("many", [False, True], ids=["one question", "many questions"])
def test_stopping_ends_within_a_batch_and_leaves_nothing_half_written(many: bool, model: Path, folder: Path) -> None:
    (folder / "long.txt").write_text(" ".join([story(200)] * 40))
    words: Sequence[str] = ["ask", "long.txt", QUESTION, "--plot", "looked.png", "--selector", "infiniretri"]
    if many:
        (folder / "questions.txt").write_text("\n".join(f"Where is number {i}?" for i in range(500)))
        words = ["ask", "long.txt", "--questions", "questions.txt", "--out", "rows.jsonl", "--selector", "infiniretri"]
    fast = ["--model", str(model), "--config", "fast.toml", "--budget", "200", "--max-new-tokens", "4"]
    ran = spawn(*words, *fast)
    assert ran.stderr is not None
    until(ran.stderr, "questions" if many else "tokenising")
    started = time.monotonic()
    ran.send_signal(signal.SIGINT)
    shown, said = ran.communicate(timeout=60)
    assert ran.returncode == 130 and "stopped." in said and "Traceback" not in said
    assert time.monotonic() - started < 10
    left = {path.name for path in folder.iterdir()} - {"long.txt", "story.txt", "fast.toml", "questions.txt"}
    assert left == ({"rows.jsonl"} if many else set())
    if many:
        rows = (folder / "rows.jsonl").read_text()
        assert rows.endswith("\n") and all(json.loads(row)["id"] for row in rows.splitlines())


def test_a_reader_that_goes_away_is_no_error_message() -> None:
    with spawn("list", "selectors") as ran:
        assert ran.stdout is not None and ran.stderr is not None
        ran.stdout.close()
        assert ran.stderr.read() == "" and ran.wait() == 1


# --- generate -------------------------------------------------------------------------------------------------------


def test_generate_says_the_same_with_drafts_and_without(model: Path, folder: Path) -> None:
    words = ["generate", str(model), "--prompt", "story.txt", "--max-new-tokens", "12", "--json", "--quiet"]
    drafted, plain = (json.loads(call(*words, "--drafters", name).stdout) for name in ("document+ngram", "none"))
    assert drafted["sequences"] == plain["sequences"] and drafted["text"] == plain["text"]
    assert drafted["guarantee"] == "exact" and plain["stats"]["drafted"] == 0
    assert set(drafted["stats"]["accepted_by_source"]) == {"document", "ngram"}
    assert drafted["stats"]["rounds"] <= drafted["stats"]["tokens"] <= 12
    assert set(drafted["stats"]["seconds"]) >= {"prefill", "draft", "verify"}
    assert drafted["stats"]["guarantee"] == "exact" and drafted["stats"]["tokens_per_round"] >= 1
    shown = call(*words[:-2], "--document", "story.txt")
    assert shown.exit_code == 0 and "guarantee: exact" in shown.stderr and "rounds" in shown.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "none.txt"], "none.txt cannot be read"),
        (["--prompt", "empty.txt"], "empty.txt is empty"),
        (["--prompt", "story.txt", "--drafters", "document+nonsense"], "no drafter named 'nonsense'"),
        (["--prompt", "story.txt", "--controller", "nonsense"], "no controller named 'nonsense'"),
        (["--prompt", "story.txt", "--controller", "fixed:nodes=-1"], "nodes=-1 must not be negative"),
        (["--prompt", "story.txt", "--temperature", "-1"], "temperature=-1"),
    ],
)
def test_generate_refuses_what_it_cannot_use(words: Sequence[str], said: str, model: Path, folder: Path) -> None:
    (folder / "empty.txt").write_text(" \n")
    ran = call("generate", str(model), *words)
    assert ran.exit_code == 2 and said in ran.stderr
    assert asked(model, "story.txt", QUESTION, "--drafters", "nonsense").exit_code == 2
    assert asked(model, "story.txt", QUESTION, "--controller", "nonsense").exit_code == 2


def test_generate_reads_no_prompt_that_passes_the_window(model: Path, folder: Path) -> None:
    (folder / "long.txt").write_text(story() * 12)
    ran = call("generate", str(model), "--prompt", "long.txt", "--max-new-tokens", "12")
    assert ran.exit_code == 3 and "12 new ones are asked for" in ran.stderr and "longctx ask long.txt" in ran.stderr


def test_a_controller_is_chosen_by_its_flag_or_by_the_configuration(model: Path, folder: Path) -> None:
    (folder / "still.toml").write_text('controller = "fixed:nodes=0"\n')
    words = ["generate", str(model), "--prompt", "story.txt", "--max-new-tokens", "12", "--json", "--quiet"]
    many, none, still = (
        json.loads(call(*words, *more).stdout)["stats"]["drafted"]
        for more in (["--controller", "fixed:nodes=8"], ["--controller", "fixed:nodes=0"], ["--config", "still.toml"])
    )
    assert many > 0 == none == still
    words = ["ask", "story.txt", QUESTION, "--model", str(model), "--selector", "bm25", "--budget", "200", "--json"]
    for nodes in (8, 0):
        # in a new home the model is first asked what follows which token behind the sixteenth of an answer
        more = ["--max-new-tokens", "40", "--config", "fast.toml", "--controller", f"fixed:nodes={nodes}"]
        (step,) = [step for step in json.loads(call(*words, *more).stdout)["trace"] if step["name"] == "decode"]
        assert (step["facts"]["drafted"] > 0) == (nodes > 0), step
