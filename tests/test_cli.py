"""The command line: results on stdout, all else on stderr, an exit code for every outcome, never a traceback."""

from __future__ import annotations

import dataclasses
import errno
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
from rich.text import Text
from typer.main import get_command
from typer.testing import CliRunner

import longctx
from longctx import plugins
from longctx.cli import app
from longctx.commands import ask, process, screen
from longctx.commands.settings import Settings, count
from longctx.errors import MissingExtra, installing

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent
QUESTION = "Where is the kettle of Tobin kept?"
NEEDLE = "Tobin keeps the kettle in room 4711."


def story(sentences: int = 60) -> str:
    lines = [
        f"In winter number {i} the street by the river was quiet and the report said so." for i in range(sentences)
    ]
    lines[sentences // 2] = NEEDLE
    return " ".join(lines)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"), num_hidden_layers=2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a command is run: a document of 60 sentences, and a configuration without calibration and encoder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "story.txt").write_text(story())
    (tmp_path / "fast.toml").write_text('calibration = "none"\nencoder = "none"\nsegment_tokens = 128\n')
    return tmp_path


def call(*words: str) -> Any:
    """The command in this process: exit code, stdout and stderr."""
    return CliRunner().invoke(app, list(words), prog_name="longctx")


def asked(model: Path, *words: str) -> Any:
    fast = ["--config", "fast.toml", "--selector", "bm25", "--budget", "200", "--max-new-tokens", "4"]
    return call("ask", *words, "--model", str(model), *fast)


def spawn(*words: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_DISABLE_PROGRESS_BARS")  # the command itself keeps them away
    return subprocess.Popen(
        [sys.executable, "-m", "longctx", *words],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


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
    assert "be copied [the prompt]." in " ".join(call("generate", "--help").stdout.replace("│", " ").split())


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


# --- models ---------------------------------------------------------------------------------------------------------


def test_the_doctor_counts_layers_and_heads_without_weights(model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"")  # never opened
    found = json.loads(call("doctor", str(tmp_path), "--json").stdout)
    assert found["layers"] == {"full_attention": 2}
    assert (found["heads"], found["kv_heads"], found["head_dim"], found["window"]) == (4, 2, 16, 4096)
    assert found["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4
    assert found["weight_bytes"] == 4 * found["parameters"]
    tables = 2 * found["vocabulary"] * found["hidden"]  # in front and behind: a tiny Llama does not tie them
    assert found["layer_parameters"] == found["parameters"] - tables
    assert set(found["abilities"].values()) == {""}
    shown = call("doctor", str(tmp_path)).stdout
    assert "2 full attention; 4 heads, 2 for keys and values" in shown and "chat template" in shown


def test_the_doctor_says_why_layers_cannot_be_read(tmp_path: Path) -> None:
    from transformers import Qwen3NextConfig

    tiny.save(tmp_path)
    kinds = ["linear_attention", "full_attention"]
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    Qwen3NextConfig(
        num_hidden_layers=2, layer_types=kinds, vocab_size=tiny.VOCAB, num_experts=2, **small
    ).save_pretrained(tmp_path)
    found = json.loads(call("doctor", str(tmp_path), "--json").stdout)
    assert found["layers"] == {"linear_attention": 1, "full_attention": 1}
    reasons = {ability: why for ability, why in found["abilities"].items() if "segments" in ability}
    assert all("linear_attention" in why for why in reasons.values()) and len(reasons) == 1
    assert found["cache_layers"] == {"not possible: linear_attention": [0], "bounded": [1]}
    assert "0 (linear_attention)" in found["abilities"]["reads a bounded cache (kv policies)"]


def test_a_plan_is_refused_where_asking_would_be(model: Path, folder: Path) -> None:
    words = ("plan", str(model), "--tokens", "1M")
    for selector, said in (("nosuch", "Known: auto"), ("bm25:foo=1", "Its options: neighbours")):
        wrong = call(*words, "--selector", selector)
        assert wrong.exit_code == 2 and said in " ".join(wrong.stderr.replace("│", " ").split())
    whole = call(*words, "--selector", "all", "--json")
    assert whole.exit_code == 3 and json.loads(whole.stdout)["fits"] is False
    assert "window is 4096" in whole.stderr
    assert call(*words, "--selector", "all", "--kv", "longheads").exit_code == 0
    large = call(*words, "--budget", "8k")
    assert large.exit_code == 3 and "budget_tokens=8000 leaves no room" in large.stderr
    small = str(tiny.save(folder / "small", num_hidden_layers=2, max_position_embeddings=1024))
    less = json.loads(call("plan", small, "--tokens", "1M", "--json").stdout)
    assert less["fits"] and any("has room for" in said for said in less["warnings"])
    for words in (("--budget", "2048"), ("--max-new-tokens", "5000"), ("--config", "large.toml")):
        (folder / "large.toml").write_text("segment_tokens = 1020\n")
        told, why = call("plan", small, "--tokens", "100", *words), ("ask", "story.txt", QUESTION, "--model", small)
        refused = call(*why, *words)
        assert (told.exit_code, refused.exit_code) == (3, 3), (words, told.stderr, refused.stderr)
    tiny.hybrid().save_pretrained(folder / "hybrid")
    tiny.tokenizer("system").save_pretrained(folder / "hybrid")
    bounded = ("plan", str(folder / "hybrid"), "--tokens", "1k", "--kv", "squeezed")
    assert call(*bounded).exit_code == 1
    (folder / "partial.toml").write_text("kv_partial = true\n")
    assert call(*bounded, "--config", "partial.toml").exit_code == 0


def test_the_limits_of_reading_stand_in_the_configuration(model: Path, folder: Path) -> None:
    (folder / "long.html").write_text("<html><body>" + "<p>The kettle of Tobin is here.</p>" * 400 + "</body></html>")
    fast = (folder / "fast.toml").read_text()
    words = ("long.html", QUESTION, "--model", str(model), "--selector", "bm25", "--max-new-tokens", "2")
    (folder / "tight.toml").write_text(fast + "[limits]\noutput_chars = 100\n")
    refused = call("ask", *words, "--config", "tight.toml")
    assert refused.exit_code == 1 and "output_chars under [limits]" in " ".join(refused.stderr.split())
    (folder / "wide.toml").write_text(fast + "[limits]\noutput_chars = 100_000\n")
    assert call("ask", *words, "--config", "wide.toml", "--json").exit_code == 0
    for wrong, said in (("pagse = 1", "no key 'pagse'"), ("pages = -1", "pages=-1 must be a number above 0")):
        (folder / "wrong.toml").write_text(f"[limits]\n{wrong}\n")
        ran = call("ask", *words, "--config", "wrong.toml")
        assert ran.exit_code == 2 and said in " ".join(ran.stderr.split())
    (folder / "flat.toml").write_text("limits = 3\n")
    assert "is not a table" in call("ask", *words, "--config", "flat.toml").stderr


def test_the_doctor_names_the_layers_that_see_a_window(tmp_path: Path) -> None:
    tiny.save(tmp_path, "gemma3")
    found = json.loads(call("doctor", str(tmp_path), "--json").stdout)
    assert found["cache_layers"] == {"left alone: sees a window": [0, 2], "bounded": [1, 3]}
    assert "0, 2 left alone: sees a window; 1, 3 bounded" in call("doctor", str(tmp_path)).stdout


def test_calibrating_keeps_the_file_that_readers_use(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGCTX_CACHE", str(tmp_path))
    ran = call("calibrate", str(model), "--json")
    assert ran.exit_code == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert Path(found["path"]).is_file() and tmp_path in Path(found["path"]).parents
    assert 0 < len(found["heads"]) == len(found["hits"])
    assert found["tokens_asked"] == tiny.config("llama").vocab_size
    assert len(list((tmp_path / "successors").iterdir())) == 1
    from longctx import Reader

    reader = Reader.from_pretrained(model, encoder=None)
    assert str(reader._calibrator.path) == found["path"]


# --- plans ----------------------------------------------------------------------------------------------------------


def planned(model: Path, *words: str, code: int = 0) -> dict[str, Any]:
    ran = call("plan", str(model), "--json", *words)
    assert ran.exit_code == code, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_a_plan_grows_with_text_and_budget_and_its_parts_make_its_sum(model: Path) -> None:
    small, large = planned(model, "--tokens", "10k"), planned(model, "--tokens", "1M")
    assert small["tokens"] == 10_000 and large["tokens"] == 1_000_000
    assert small["above_loaded_bytes"] < large["above_loaded_bytes"]
    assert large["loaded_bytes"] == large["runtime_bytes"] + large["weights_bytes"]
    assert large["peak_bytes"] == large["loaded_bytes"] + large["above_loaded_bytes"] and large["fits"]
    wide = planned(model, "--tokens", "10k", "--budget", "3k")
    assert wide["prompt_bytes"] - small["prompt_bytes"] == (3000 - 2048) * 512
    lexical = planned(model, "--tokens", "1M", "--selector", "bm25")
    during = lexical["prompt_bytes"] + lexical["prompt_scratch_bytes"]
    assert lexical["above_loaded_bytes"] == lexical["text_and_index_bytes"] + during
    assert lexical["encoder_bytes"] == lexical["segment_memory_bytes"] == 0 < large["segment_memory_bytes"]
    assert lexical["encoding_scratch_bytes"] == 0 < small["encoding_scratch_bytes"] <= large["encoding_scratch_bytes"]
    dense = planned(model, "--tokens", "1M", "--selector", "dense")  # its batches are gone when the prompt is read
    during = dense["prompt_bytes"] + dense["prompt_scratch_bytes"]
    kept = dense["text_and_index_bytes"] + dense["encoder_bytes"]
    assert during < dense["encoding_scratch_bytes"] == dense["above_loaded_bytes"] - kept


def test_a_plan_counts_the_laws_that_xl3m_keeps_and_works_on(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longctx.commands.plan.free_bytes", lambda: None)
    vocabulary = json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    for tokens, kept in ((1_000_000, 4 * (1_000_000 // 512) * vocabulary), (200_000_000, 256 * 2**20)):
        entropy = planned(model, "--tokens", str(tokens), "--selector", "xl3m:signal=entropy")
        likely = planned(model, "--tokens", str(tokens), "--selector", "xl3m")
        more = entropy["reading_scratch_bytes"] - likely["reading_scratch_bytes"]
        assert more == 2 * (tokens // 512) * vocabulary + kept - 64 * tokens


def test_a_plan_knows_the_bytes_of_every_kv_policy(model: Path) -> None:
    found = planned(model, "--tokens", "100k", "--selector", "all", code=3)  # beyond the window, and told all the same
    full = found["kv_bytes"]["full"]
    assert set(found["kv_bytes"]) == set(plugins.names("kv")) and full == 100_000 * 512
    assert found["kv_bytes"]["squeezed"] > full > 4 * found["kv_bytes"]["snapkv"]
    squeezed = planned(model, "--tokens", "100k", "--selector", "all", "--kv", "squeezed", code=3)
    indexed = squeezed["prompt_bytes"] - found["prompt_bytes"]
    assert 0 < indexed == pytest.approx(found["kv_bytes"]["squeezed"] - full, rel=0.01)
    dropped = planned(model, "--tokens", "100k", "--selector", "all", "--kv", "snapkv", code=3)
    assert dropped["prompt_bytes"] == found["prompt_bytes"]  # all is read before anything is dropped
    bounded = planned(model, "--tokens", "100k", "--selector", "all", "--kv", "lm_infinite:budget=1000")
    assert bounded["prompt_bytes"] < found["prompt_bytes"] / 20
    assert call("plan", str(model), "--tokens", "1M", "--kv", "nonsense").exit_code == 2


def test_a_plan_for_a_share_of_a_short_text_is_that_of_full_attention_and_says_so(model: Path) -> None:
    plain = planned(model, "--tokens", "400", "--selector", "all")
    for policy in ("squeezed:keep=0.125", "longheads:keep=0.125", "lm_infinite:keep=0.01"):
        found = planned(model, "--tokens", "400", "--selector", "all", "--kv", policy)
        assert (found["prompt_bytes"], found["kv_bytes"]) == (plain["prompt_bytes"], plain["kv_bytes"])
        assert "worth it from" in found["warnings"][0] and plain["warnings"] == []
    shown = call("plan", str(model), "--tokens", "400", "--selector", "all", "--kv", "squeezed:keep=0.125")
    assert shown.exit_code == 0 and "not above the 132" in shown.stderr
    assert call("plan", str(model), "--tokens", "400", "--selector", "all", "--kv", "squeezed:budget=90").exit_code == 2


def test_a_plan_that_does_not_fit_is_shown_and_ends_with_3(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longctx.commands.plan.free_bytes", lambda: 50_000_000)
    ran = call("plan", str(model), "--tokens", "1M", "--json")
    assert ran.exit_code == 3 and not json.loads(ran.stdout)["fits"]
    assert "1,000,000 tokens" in ran.stderr and "50 MB are free" in ran.stderr


def test_free_memory_is_what_the_control_group_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = process.free_bytes()
    assert found is not None and found > 2**20
    monkeypatch.setattr(process, "_allowed", lambda: 12_345)
    assert process.free_bytes() == 12_345


@pytest.mark.skipif(sys.platform != "linux", reason="the plan's constants were measured on Linux")
@pytest.mark.timeout(300)
def test_a_plan_predicts_the_peak_of_asking_within_a_fifth(embedded_folder: Path, folder: Path) -> None:
    """In a process of its own, since what this one holds already would count."""
    (folder / "long.txt").write_text(" ".join([story(60)] * 80))
    flags = ["--selector", "bm25", "--max-new-tokens", "2", "--json", "--quiet"]
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    )
    command = [sys.executable, "-m", "longctx", "ask", "long.txt", QUESTION, *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, env=environment, check=True
    )
    shown, peak = ran.stdout.splitlines()
    tokens = json.loads(shown)["usage"]["document_tokens"]
    plan = planned(Path("embedded"), "--tokens", str(tokens), *flags[:4])
    assert plan["peak_bytes"] == pytest.approx(int(peak), rel=0.2)


# --- mistakes -------------------------------------------------------------------------------------------------------


def write_bad_files(folder: Path) -> None:
    (folder / "empty.txt").write_bytes(b"")
    (folder / "blank.txt").write_text(" \n\t\n")
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
    (["story.txt", QUESTION, "--budget", "1M"], 3, "at most"),
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
    assert drafted["stats"]["rounds"] <= drafted["stats"]["new_tokens"] <= 12
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
        more = ["--max-new-tokens", "12", "--config", "fast.toml", "--controller", f"fixed:nodes={nodes}"]
        (step,) = [step for step in json.loads(call(*words, *more).stdout)["trace"] if step["name"] == "decode"]
        assert (step["facts"]["drafted"] > 0) == (nodes > 0), step
