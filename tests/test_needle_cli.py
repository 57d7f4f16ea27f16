"""``longctx needle`` on the command line: settings, the forecast, rebuilding and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from needle_runs import grid, made, of_before
from test_encoder import tiny as tiny_encoder
from test_endpoint import GOOD, Server
from typer.testing import CliRunner

from longctx.cli import app
from longctx.commands import forecast
from longctx.pipelines.haystack import digest
from longctx.pipelines.needle_systems import Books, Selecting
from longctx.pipelines.rows import read

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "model", num_hidden_layers=2)
    (tmp_path / "fast.toml").write_text('calibration = "none"\nencoder = "none"\nsegment_tokens = 128\nbudget = 150\n')
    monkeypatch.setattr(forecast, "speed_of", lambda dtype, reading: forecast.Speed(1e9, 1e9, 1e9))
    return tmp_path


def call(*words: str) -> Any:
    return CliRunner().invoke(app, ["needle", *words], prog_name="longctx")


COMMON = ("--model", "model", "--config", "fast.toml", "--max-new-tokens", "4", "--out", "out", "--depths", "2")


def test_one_command_makes_rows_table_picture_and_page_and_another_the_prompt(folder: Path) -> None:
    ran = call("--lengths", "0.5k", "--selector", "bm25", "--plain", "full", "--json", "--quiet", *COMMON)
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert (told["rows"], told["before"]) == (4, 0)
    assert [line["system"] for line in told["summary"]] == ["full", "bm25"]
    assert {Path(path).name for path in told["files"].values()} == {
        f"needle.{e}" for e in ("jsonl", "csv", "png", "html")
    }
    assert all((folder / path).is_file() for path in told["files"].values())
    held = read(folder / "out" / "needle.jsonl")
    assert str(folder) not in json.dumps(held) and held[0]["made_with"]["model"] == "model"
    drafted = {row["system"]: row["facts"].get("drafters") for row in held}
    assert drafted == {"full": None, "bm25": "none"}, "drafts follow the clock, and no two runs would round alike"
    again = call("--lengths", "500", "--selector", "bm25", "--plain", "full", "--json", "--quiet", *COMMON)
    assert json.loads(again.stdout)["before"] == 4
    prompt = call("rebuild", "out/needle.jsonl", "--row", "2")
    assert prompt.exit_code == 0 and held[1]["question"] in prompt.stdout
    for words, wanted in (
        ((), held[1]["given_sha256"]),
        (("--whole",), held[1]["recipe"]["prompt_sha256"]),
    ):
        told = json.loads(call("rebuild", "out/needle.jsonl", "--row", "2", "--json", *words).stdout)
        assert digest(told["prompt"]) == wanted and told["warnings"] == []
    assert held[1]["given_sha256"] != held[1]["recipe"]["prompt_sha256"]


def test_rebuilding_a_row_of_before_prints_the_whole_text_and_says_so(folder: Path) -> None:
    assert call("--lengths", "500", "--selector", "bm25", "--quiet", *COMMON).exit_code == 0
    path = folder / "out" / "needle.jsonl"
    (first, second) = read(path)
    second |= {"asked": False, "read": [], "given_sha256": None}
    path.write_text(f"{json.dumps(of_before(first))}\n{json.dumps(second)}\n")
    ran = call("rebuild", str(path), "--row", "1", "--quiet")
    assert ran.exit_code == 0 and "made before" in ran.stderr
    assert digest(ran.stdout[:-1]) == first["recipe"]["prompt_sha256"]
    ran = call("rebuild", str(path), "--row", "2", "--quiet")
    assert (ran.exit_code, ran.stdout) == (0, "") and "not asked" in ran.stderr
    told = json.loads(call("rebuild", str(path), "--row", "2", "--json").stdout)
    assert told["prompt"] is None and "not asked" in told["warnings"][0]


def test_a_policy_and_drafters_of_flags_and_of_the_configuration_are_used(folder: Path) -> None:
    kv = "lm_infinite:budget=100"
    words = ("--lengths", "500", "--selector", "all", "--selector", "bm25", "--json", "--quiet", *COMMON)
    told = json.loads(call(*words, "--kv", kv, "--drafters", "none").stdout)
    assert [line["system"] for line in told["summary"]] == [f"all --kv {kv}", f"bm25 --kv {kv}"]
    with (folder / "fast.toml").open("a") as file:
        file.write(f'kv = "{kv}"\ndrafters = "document+ngram"\n')
    told = json.loads(call(*words).stdout)
    assert (told["rows"], told["before"]) == (4, 4), "the file says the same as the flag did"
    told = json.loads(call(*words, "--kv", "none").stdout)
    assert (told["rows"], told["before"]) == (8, 4)
    rows = read(folder / "out" / "needle.jsonl")
    assert {row["system"]: row["facts"]["drafters"] for row in rows} == {
        f"all --kv {kv}": "none", f"bm25 --kv {kv}": "none", "all": "document+ngram", "bm25": "document+ngram"
    }  # fmt: skip
    assert {row["made_with"]["kv"] for row in rows} == {kv, None}
    assert f"all --kv {kv}" in (folder / "out" / "needle.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("key", "words", "said"),
    [
        ("seed = 7", ("--selector", "bm25"), "seed=7"),
        ("seed = 7", ("--plain", "full"), "--seeds"),
        ('kv = "longheads"', ("--plain", "full"), "kv='longheads'"),
        ('drafters = "ngram"', ("--plain", "truncated"), "drafters='ngram'"),
        ('kv = "longheads"', ("--endpoint", "http://localhost:1/v1", "--endpoint-model", "m"), "kv='longheads'"),
        ('kv = "nonsense"', ("--selector", "all"), "no kv named 'nonsense'"),
        ('drafters = "nonsense"', ("--selector", "all"), "no drafter named 'nonsense'"),
        ('kv = "lm_infinite:budget=5"', ("--selector", "all"), "a budget of 5 slots"),
    ],
)
def test_a_setting_that_no_system_would_be_given_is_refused_by_its_name(
    folder: Path, key: str, words: tuple[str, ...], said: str
) -> None:
    with (folder / "fast.toml").open("a") as file:
        file.write(f"{key}\n")
    (folder / "model" / "model.safetensors").write_bytes(b"no weights")
    ran = call("--lengths", "500", *words, *COMMON)
    assert (ran.exit_code, "Traceback" in ran.output) == (2, False) and said in ran.stderr
    assert not (folder / "out").exists()


def test_rows_hold_no_path_of_the_machine(folder: Path) -> None:
    config = (folder / "fast.toml").read_text().replace('encoder = "none"', f'encoder = "{folder / "minilm"}"')
    (folder / "fast.toml").write_text(config)
    tiny_encoder(folder / "minilm", "bert")
    ran = call("--lengths", "500", "--selector", "bm25", "--json", "--quiet", *COMMON)
    assert ran.exit_code == 0, ran.output
    rows = read(folder / "out" / "needle.jsonl")
    assert rows[0]["made_with"]["encoder"] == "minilm" and str(folder) not in json.dumps(rows)


def test_rows_of_another_haystack_of_the_same_name_are_refused(folder: Path) -> None:
    for name in ("quiet", "loud"):
        (folder / name).mkdir()
        (folder / name / "hay.txt").write_text(" ".join(f"In week {i} it was {name}." for i in range(400)))
    words = ("--lengths", "500", "--selector", "bm25", "--quiet", *COMMON, "--haystack")
    assert call(*words, "quiet/hay.txt").exit_code == 0
    ran = call(*words, "loud/hay.txt")
    assert ran.exit_code == 4 and "haystack_sha256 was" in ran.stderr


def test_a_dry_run_tells_what_it_takes_and_makes_no_row(folder: Path) -> None:
    words = ("--lengths", "500,9k", "--selector", "bm25", "--plain", "full", "--task", "number", "--task", "passkey")
    ran = call(*words, "--dry-run", *COMMON)
    assert ran.exit_code == 0, ran.output
    assert "500 tokens: 4 texts, 8 rows" in ran.stdout and "9,000 tokens" in ran.stdout
    assert "beyond the window: full" in ran.stdout and "about" in ran.stdout
    assert not (folder / "out" / "needle.jsonl").exists()
    found = json.loads(call(*words, "--dry-run", "--json", *COMMON).stdout)["forecast"]
    assert [work["tokens"] for work in found] == [2000, 36000]
    assert found[1]["peak_bytes"] >= found[0]["peak_bytes"] > 0 and found[1]["seconds"] > found[0]["seconds"] > 0
    assert found[1]["refused"] == ["full"]
    assert not (folder / "out").exists()


def test_needles_that_do_not_fit_the_shortest_text_are_refused_before_any_is_asked_about(folder: Path) -> None:
    ran = call("--lengths", "500,30", "--task", "number", "--task", "multikey", "--selector", "bm25", *COMMON)
    assert ran.exit_code == 2 and "which a text of 30 cannot hold" in ran.stderr
    assert not (folder / "out").exists()


def test_the_models_own_forward_is_forecast_in_its_own_format_and_reading_in_the_faster(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(operations: float, stock: float, *words: str) -> float:
        speed = forecast.Speed(operations, stock, 1e15)
        monkeypatch.setattr(forecast, "speed_of", lambda dtype, reading: speed)
        ran = call("--lengths", "500", *words, "--dry-run", "--json", *COMMON)
        return float(json.loads(ran.stdout)["forecast"][0]["seconds"])

    whole = ("--selector", "all", "--kv")  # a policy that bounds the reading has the model's own forward do it
    own = [("--plain", "full"), (*whole, "lm_infinite:budget=200")]
    for words in (*own, ("--selector", "bm25"), ("--selector", "xl3m"), (*whole, "snapkv:budget=200")):
        slower = seconds(1e9, 1e9, *words)
        in_stock, in_fast = seconds(1e9, 4e9, *words), seconds(4e9, 1e9, *words)
        fast, slow = (in_stock, in_fast) if words in own else (in_fast, in_stock)
        assert fast == pytest.approx(slower / 4, rel=0.01) and slow == pytest.approx(slower)


def forecasts(folder: Path, *words: str) -> list[dict[str, Any]]:
    """The forecast of 2,000 and 9,000 tokens, where the window is 4,096."""
    ran = call("--lengths", "2k,9k", *words, "--together", "--dry-run", "--json", *COMMON)
    assert ran.exit_code == 0, ran.output
    found: list[dict[str, Any]] = json.loads(ran.stdout)["forecast"]
    return found


def test_a_policy_is_counted_in_memory_and_time_and_lets_texts_pass_the_window(folder: Path) -> None:
    plain, bounded = forecasts(folder, "--selector", "all"), {}
    assert [work["refused"] for work in plain] == [[], ["all"]] and not plain[1]["seconds"]
    for kv in ("full", "squeezed:budget=200", "longheads:budget=800", "lm_infinite:budget=200"):
        bounded[kv] = forecasts(folder, "--selector", "all", "--kv", kv)
        grows = kv.startswith("l")
        assert [work["refused"] for work in bounded[kv]] == [[], [] if grows else [f"all --kv {kv}"]]
    # 2 layers of 2 KV heads of 16 numbers in float32, keys and values: 512 bytes a token
    peaks = {kv.partition(":")[0]: works[0]["peak_bytes"] - plain[0]["peak_bytes"] for kv, works in bounded.items()}
    assert peaks["full"] == 0 < peaks["longheads"] < peaks["squeezed"]
    frame = 2000 - 200  # tokens of which no key and no value is kept, beside the question's
    assert -(frame + 60) * 512 < peaks["lm_infinite"] < -(frame - 60) * 512 + 2 * 2 * 8 * 200
    # one text with two facts is read once and not for each question; its own forward reads no slower here
    once, twice = bounded["full"][0]["seconds"], plain[0]["seconds"]
    answers = 2 * 4 * tiny_weight_bytes() / (0.5 * 1e9)
    assert once - answers == pytest.approx((twice - answers) / 2)
    assert bounded["lm_infinite:budget=200"][0]["seconds"] < once, "it attends to fewer keys while it reads"


def test_the_bounded_cache_of_one_system_is_there_while_another_works(folder: Path) -> None:
    kv = ("--kv", "longheads:budget=800")
    alone, plain = forecasts(folder, "--selector", "all", *kv), forecasts(folder, "--plain", "truncated")
    both = forecasts(folder, "--selector", "all", "--plain", "truncated", *kv)
    for one, other, together in zip(alone, plain, both, strict=True):
        kept = together["peak_bytes"] - max(one["peak_bytes"], other["peak_bytes"])
        pages = one["length"] // 256 * 16
        assert kept == one["length"] * 512 + 2 * 2 * pages * 16 * 4, "keys, values and the index of its text"
        assert together["seconds"] == pytest.approx(one["seconds"] + other["seconds"])


def tiny_weight_bytes() -> int:
    return sum(weight.nbytes for weight in tiny.model(num_hidden_layers=2).parameters())


def test_a_dry_run_counts_the_rows_of_a_server_beside_those_of_the_model(folder: Path) -> None:
    server = ("--endpoint", "http://localhost:1/v1", "--endpoint-model", "m", "--dry-run", "--json", *COMMON)
    rows = [
        json.loads(call("--lengths", "500", *words, *server).stdout)["forecast"][0]["rows"]
        for words in ((), ("--selector", "bm25"), ("--selector", "bm25", "--plain", "full"))
    ]
    assert rows == [2, 4, 6]


def test_rebuild_takes_the_flags_of_all_commands_and_none_in_front_of_it(folder: Path) -> None:
    assert call("--lengths", "500", "--selector", "bm25", "--quiet", *COMMON).exit_code == 0
    words = ("out/needle.jsonl", "--row", "1", "--quiet", "--model", "model", "--config", "fast.toml")
    assert call("rebuild", *words).exit_code == 0
    ran = call("--quiet", "--lengths", "500", "rebuild", "out/needle.jsonl", "--row", "1")
    assert ran.exit_code == 2 and "--lengths" in ran.stderr and "--quiet" in ran.stderr


def test_a_length_that_memory_does_not_hold_is_refused_before_anything_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "free_bytes", lambda: 1000)
    ran = call("--lengths", "500", "--selector", "bm25", *COMMON)
    assert ran.exit_code == 3 and "500 tokens need" in ran.stderr and "1 kB are free" in ran.stderr
    assert not (folder / "out" / "needle.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--lengths", "500", "--task", "nonsense"), 2, "no needle named 'nonsense'"),
        (("--lengths", "many"), 2, "--lengths"),
        (("--lengths", "500", "--plain", "half"), 2, "--plain 'half'"),
        (("--lengths", "500", "--selector", "nonsense"), 2, "no selector named"),
        (("--lengths", "500", "--selector", "bm25", "--selector", "bm25"), 2, "named twice"),
        (("--lengths", "90k", "--haystack", "fast.toml"), 2, "90,000 are asked for"),
        (("--lengths", "500", "--endpoint", "http://localhost:1/v1"), 2, "--endpoint-model"),
        (("--lengths", "500", "--endpoint", "http://localhost:abc/v1", "--endpoint-model", "m"), 2, "is no address"),
        (("--lengths", "500", "--endpoint-model", "m"), 2, "'m' goes with --endpoint"),
        ((), 2, "--lengths is needed"),
    ],
)
def test_what_cannot_be_asked_ends_with_a_code_and_one_message(
    folder: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    ran = call(*words, *COMMON)
    assert (ran.exit_code, "Traceback" in ran.output) == (code, False) and said in ran.stderr


def test_a_server_can_be_the_only_system_and_the_model_gives_its_tokenizer_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    try:
        server.replies = [(200, GOOD, {})]
        (folder / "model" / "model.safetensors").write_bytes(b"no weights")
        ran = call("--lengths", "500", "--endpoint", server.url, "--endpoint-model", "m", "--json", "--quiet", *COMMON)
    finally:
        server.close()
    assert ran.exit_code == 0, ran.output
    held = read(folder / "out" / "needle.jsonl")
    assert [row["answer"] for row in held] == ["Room 4711.", "Room 4711."] and held[0]["kept"] is None
    assert len(server.asked) == 2 and held[0]["question"] in server.asked[0][2]["messages"][0]["content"]


def test_the_embedded_model_finds_needles(embedded_reader: Any, tmp_path: Path) -> None:
    asked = grid(tasks=("number",), lengths=(1500,), depths=4)
    rows = made(embedded_reader, tmp_path, asked, [Selecting(Books(embedded_reader), "auto", 300, 20, {})])
    assert [row["kept"] for row in rows] == [1.0] * 4
    assert sum(row["said"] for row in rows) >= 3.0, [row["answer"] for row in rows]
