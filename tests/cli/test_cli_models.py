"""Commands about models and memory: doctor, calibrate, plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from cli_runs import QUESTION, ROOT, call, story

from longctx import plugins
from longctx.commands import process

pytestmark = pytest.mark.usefixtures("one_thread")


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
    assert all("linear_attention" in why for why in reasons.values()) and len(reasons) == 2
    assert found["cache_layers"] == {"not possible: linear_attention": [0], "bounded": [1]}
    assert "0 (linear_attention)" in found["abilities"]["reads a bounded cache (kv policies)"]


def test_the_doctor_tries_what_only_passes_tell(model: Path, tmp_path: Path) -> None:
    """A Nemotron looks like a Llama to its configuration, and has attention of its own."""
    from test_fitness import ODD

    ODD["has attention of its own"]().save_pretrained(tmp_path)
    tiny.tokenizer("system").save_pretrained(tmp_path)
    bounded, moved = "reads a bounded cache (kv policies)", "moves keys of a text (kv longheads, lm_infinite)"
    told, tried = (json.loads(call("doctor", str(tmp_path), "--json", *how).stdout) for how in ((), ("--try",)))
    different = {"abilities": {}, "cache_layers": {}, "tried": True}
    assert {**told, **different} == {**tried, **different} and told["tried"] is False
    assert told["abilities"][bounded] == told["abilities"][moved] == ""
    assert all("a bounded cache does not suit" in tried["abilities"][one] for one in (bounded, moved))
    assert told["cache_layers"] == {"bounded": [0, 1, 2, 3]}
    ((words, numbers),) = tried["cache_layers"].items()
    assert numbers == [0, 1, 2, 3] and words.startswith("not possible: a bounded cache does not suit")
    assert "layers [0, 1, 2, 3] do not attend" in tried["abilities"]["reads by segments (auto, infiniretri, xl3m)"]
    assert tried["abilities"]["verifies drafts as trees (speculation)"].endswith("chains are")
    own = json.loads(call("doctor", str(model), "--try", "--json").stdout)
    assert own["tried"] and set(own["abilities"].values()) == {""}
    assert "--try" in call("doctor", str(model)).stderr and "--try" not in call("doctor", str(model), "--try").stderr


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
    assert call("plan", str(model), "--tokens", "1k", "--budget", "8k").exit_code == 0  # all of it fits
    small = str(tiny.save(folder / "small", num_hidden_layers=2, max_position_embeddings=1024))
    less = json.loads(call("plan", small, "--tokens", "1M", "--json").stdout)
    assert less["fits"] and any("has room for" in said for said in less["warnings"])
    for words in (("--budget", "2048"), ("--max-new-tokens", "5000"), ("--config", "large.toml")):
        (folder / "large.toml").write_text("segment_tokens = 1020\n")
        told, why = call("plan", small, "--tokens", "2000", *words), ("ask", "story.txt", QUESTION, "--model", small)
        refused = call(*why, *words)
        assert (told.exit_code, refused.exit_code) == (3, 3), (words, told.stderr, refused.stderr)
    tiny.hybrid().save_pretrained(folder / "hybrid")
    tiny.tokenizer("system").save_pretrained(folder / "hybrid")
    bounded = ("plan", str(folder / "hybrid"), "--tokens", "1k", "--kv", "squeezed")
    assert call(*bounded).exit_code == 1
    (folder / "partial.toml").write_text("kv_partial = true\n")
    assert call(*bounded, "--config", "partial.toml").exit_code == 0


def test_a_plan_refuses_a_policy_that_moves_keys_where_asking_would(model: Path, folder: Path) -> None:
    """Only where it would move any: one that holds the whole text reads it as it stands."""
    changing = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    other = str(tiny.save(folder / "dynamic", num_hidden_layers=2, rope_parameters=changing))
    for name, tokens, code in ((str(model), "3000", 0), (other, "3000", 1), (other, "300", 0)):
        words = ("--selector", "all", "--kv", "lm_infinite:budget=600")
        told = call("plan", name, "--tokens", tokens, *words)
        assert told.exit_code == code and ("so they cannot be moved" in told.stderr) == bool(code)
    (folder / "long.txt").write_text("The kettle of Tobin is here. " * 400)
    asked = call("ask", "long.txt", QUESTION, "--model", other, *words, "--config", "fast.toml")
    assert asked.exit_code == 1 and "so they cannot be moved" in asked.stderr
    tiny.hybrid().save_pretrained(folder / "mixed")
    tiny.tokenizer("system").save_pretrained(folder / "mixed")
    growing = ("plan", str(folder / "mixed"), "--tokens", "1k", "--kv", "longheads", "--config", "partial.toml")
    (folder / "partial.toml").write_text("kv_partial = true\n")
    assert call(*growing).exit_code == 1


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
    half = planned(model, "--tokens", "100k", "--selector", "all", "--kv", "snapkv:keep=0.5", code=3)
    assert half["kv_bytes"] == found["kv_bytes"] | {"snapkv": pytest.approx(4 * found["kv_bytes"]["snapkv"], rel=0.01)}


def test_a_plan_counts_windows_where_layers_keep_no_more(tmp_path: Path) -> None:
    slides = tiny.save(tmp_path, "gemma2")  # every second layer sees a few tokens
    short, full = (planned(slides, "--tokens", n, "--selector", "all", code=c) for n, c in (("1k", 0), ("100k", 3)))
    assert short["kv_bytes"]["full"] == 1_000 * 1024
    assert 0 < full["kv_bytes"]["full"] - 100_000 * 512 < 4_000 * 512
    assert "1,024 bytes a token, 512 of them for the last 8 only" in call("doctor", str(slides)).stdout
    assert full["prompt_bytes"] < 100_000 * 600 < planned(slides, "--tokens", "100k")["stored"]["segment_exact_bytes"]


def test_a_plan_for_a_model_whose_layers_all_see_a_window_bounds_nothing(tmp_path: Path) -> None:
    """Its configuration names no kinds of layers, and what policies leave out used to be taken off again."""
    slides = tiny.save(tmp_path, "mistral")
    assert json.loads(call("doctor", str(slides), "--json").stdout)["layers"] == {"sliding_attention": 4}
    kept = planned(slides, "--tokens", "3k", "--selector", "all")["kv_bytes"]
    assert len(kept) > 5 and len(set(kept.values())) == 1 and kept["full"] > 0


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
    (folder / "short.txt").write_text(story(30))
    flags = ["--selector", "bm25", "--max-new-tokens", "2", "--json", "--quiet"]
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for text in ("short.txt", "long.txt"):  # the first also tries ways of multiplying, which takes memory of its own
        command = [sys.executable, "-m", "longctx", "ask", text, QUESTION, *flags]
        ran = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True, env=environment, check=True
        )
    shown, peak = ran.stdout.splitlines()
    tokens = json.loads(shown)["usage"]["document_tokens"]
    plan = planned(Path("embedded"), "--tokens", str(tokens), *flags[:4])
    assert plan["peak_bytes"] == pytest.approx(int(peak), rel=0.2)
