"""The pictures of ``longctx bench kv`` show what its tables say, and only where something is held against something."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from longctx.errors import MissingExtra
from longctx.pipelines import bench_kv, kv_compared, kv_picture, kv_report


def answer(question: int, policy: str, share: float, score: float, loss: float) -> dict[str, Any]:
    return {
        "document": "d", "question": str(question), "policy": policy, "score": score, "loss": loss, "same": False,
        "read_share": share, "lookup_bytes": 0, "date": "2026-01-01", "machine": "m", "made_with": {"source": "x"},
    }  # fmt: skip


def answers() -> list[dict[str, Any]]:
    """Two methods with two shares each, one of them in two modes, and one share that was refused."""
    losses = {
        ("quest:keep=0.25", 0.25): 0.5,
        ("quest:keep=0.125", 0.12): 0.9,
        ("squeezed:keep=0.125", 0.125): 0.02,
        ("squeezed:keep=0.25,mode=paper", 0.3): 0.2,
        ("squeezed:budget=40", 0.25): 0.01,
    }
    rows = [answer(number, "full", 1.0, 1.0, 0.0) for number in range(4)]
    for (policy, share), loss in losses.items():
        rows += [answer(number, policy, share, float(number > 0), loss * (1 + number)) for number in range(4)]
    about = {"document": "d", "question": "0", "policy": "snapkv:keep=0.01", "error": {"kind": "BadOption"}}
    return [*rows, about | {"date": "2026-01-01", "machine": "m", "made_with": {"source": "x"}}]


def timed(measure: str, method: str, tokens: int, rates: list[float], tile: int = 0) -> dict[str, Any]:
    row = {
        "measure": measure, "method": method, "context": tokens, "tile": tile, "round": 0,
        "machine": "One, 2 cores", "date": "2026-01-02", "made_with": {"model": "m", "dtype": "bfloat16", "threads": 2},
    }  # fmt: skip
    if measure == "read":
        return row | {
            "prefill_tokens_per_second": rates[0], "prefill_seconds": 1.0, "index_seconds": 0.1, "peak_bytes": None,
        }  # fmt: skip
    told = {"median": sorted(rates)[len(rates) // 2], "least": min(rates), "most": max(rates), "slots": tokens}
    return row | told | {"tokens_per_second": rates, "read_keys": None, "read_share": None, "lookup_bytes": None}


def speeds(tokens: int, times: float) -> list[dict[str, Any]]:
    """A file of one length, in which full reads and decodes ``times`` as fast as stock."""
    return [
        timed("decode", "full", tokens, [99.0] * 3, tile=8 * tokens),
        timed("decode", "stock", tokens, [1.0] * 3, tile=8 * tokens),
        timed("read", "stock", tokens, [10.0]),
        timed("read", "full", tokens, [10.0 * times]),
        timed("decode", "stock", tokens, [1.0, 2.0, 4.0]),
        timed("decode", "full", tokens, [times, 2 * times, 4 * times]),
    ]


def put(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_line_joins_the_shares_of_a_method_and_stands_where_the_table_says() -> None:
    found = {line.policy: line for line in kv_compared.losses(answers())}
    figure = kv_picture.draw_quality(list(found.values()))
    nats, points = figure.axes
    assert figure.legends[0].get_texts()[0].get_text() == "quest"
    drawn = {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in nats.containers}
    assert {name: len(line) for name, line in drawn.items()} == {"quest": 2, "squeezed": 2, "squeezed:mode=paper": 1}
    assert drawn["squeezed"] == [
        [100 * found[name].share, found[name].loss.mean] for name in ("squeezed:keep=0.125", "squeezed:budget=40")
    ]
    lost = next(bars for bars in points.containers if bars.get_label() == "quest")
    assert [y for _, y in lost.lines[0].get_xydata()] == [25.0, 25.0]
    ends = lost.lines[2][0].get_segments()[0][:, 1]
    assert ends.tolist() == pytest.approx([found["quest:keep=0.125"].lost.low, found["quest:keep=0.125"].lost.high])
    colours = {bars.get_label(): (bars.lines[0].get_color(), bars.lines[0].get_linestyle()) for bars in nats.containers}
    assert colours["squeezed"][0] == colours["squeezed:mode=paper"][0] != colours["quest"][0]
    assert colours["squeezed"][1] != colours["squeezed:mode=paper"][1]


def test_all_that_was_lost_or_won_is_within_the_picture() -> None:
    rows = [answer(number, "full", 1.0, 1.0, 0.0) for number in range(3)]
    rows += [answer(number, "quest", 0.2, 1.0, loss) for number, loss in enumerate([-0.4, -0.3, -0.35])]
    rows += [answer(number, "snapkv", 0.01, 0.0, loss) for number, loss in enumerate([8.0, 9.0, 7.0])]
    found = kv_compared.losses(rows)
    low, high = kv_picture.draw_quality(found).axes[0].get_ylim()
    assert low < min(line.loss.low for line in found) and high > max(line.loss.high for line in found)


def test_lengths_of_one_machine_stand_in_one_picture_at_their_median() -> None:
    files = [speeds(1000, 2.0), speeds(1000, 4.0), speeds(4000, 8.0)]
    (group,) = kv_picture.lengths(files).values()
    expected = {"full": {1000: 3.0, 4000: 8.0}}
    assert kv_picture.read_by(group) == kv_picture.decoded_by(group) == expected
    (decoding, _) = kv_picture.draw_speed({"reading": expected, "decoding": expected}).axes
    assert decoding.lines[0].get_xydata().tolist() == [[1000, 3.0], [4000, 8.0]]
    other = [{**row, "machine": "Another"} for row in speeds(4000, 8.0)]
    assert not kv_picture.lengths([files[0], other]), "lengths of two machines are no line"


def test_what_did_not_take_turns_with_stock_is_not_drawn() -> None:
    apart = [row | {"turns": row["method"]} if row["measure"] == "decode" else row for row in speeds(1000, 2.0)]
    (group,) = kv_picture.lengths([apart, speeds(4000, 8.0)]).values()
    assert kv_picture.decoded_by(group) == {"full": {4000: 8.0}}
    rounds = [row | {"round": 1} if row["method"] == "full" else row for row in speeds(1000, 2.0)]
    (group,) = kv_picture.lengths([speeds(2000, 2.0), rounds, speeds(4000, 8.0)]).values()
    assert kv_picture.read_by(group) == {"full": {2000: 2.0, 4000: 8.0}}


def test_the_page_shows_the_pictures_that_are_beside_it(tmp_path: Path) -> None:
    put(tmp_path, "kv-a-m.jsonl", answers())
    put(tmp_path, "kv-b-m.jsonl", [answer(0, policy, 1.0, 1.0, 0.0) for policy in ("full", "quest")])
    for tokens in (1000, 4000):
        put(tmp_path, f"kv-speed-{tokens}.jsonl", speeds(tokens, math.sqrt(tokens)))
    page = kv_report.write_report(tmp_path).read_text()
    shown = [line.partition("](")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert shown == ["kv-lengths-m-bfloat16-2-one-2-cores.png", "kv-a-m.png"]
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert sorted(first) == sorted(shown) and all(data.startswith(b"\x89PNG") for data in first.values())
    kv_report.write_report(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.png")} == first
    assert "](images/kv-a-m.png)" in "\n".join(kv_report.tables(tmp_path, "images/"))


def test_without_the_extra_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_report, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pictures of bounded caches.*plots"):
        bench_kv.run_kv("nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
