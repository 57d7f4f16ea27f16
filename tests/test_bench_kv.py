"""The benchmark of bounded caches: what its rows hold is so, a run goes on, and its page says what the rows say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import longctx.kv
from longctx.commands import keywords
from longctx.errors import ArtifactError, BadOption, UsageError
from longctx.pipelines import bench_kv, kv_quality, kv_report, kv_sources, kv_speed
from longctx.pipelines.paired import interval

pytestmark = pytest.mark.usefixtures("one_thread")
SQUEEZED = "squeezed:budget=60,sinks=2,recent=16,clusters=0.2"
ENDS = "lm_infinite:budget=40,sinks=4,window=32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"), num_hidden_layers=2)


@pytest.fixture(scope="module")
def paragraphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    rows = [
        {
            "context": f"the code of the room {number} is in the river street. " * 3,
            "qas": [
                {"question": f"what is the code of {number}", "answers": ["river"]},
                {"question": f"what is {number}", "answers": ["room", "street"]},
            ],
        }
        for number in range(4)
    ]
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_speed_measures_every_method_at_every_length_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a process of its own starts slowly: here the same function runs in this one
    monkeypatch.setattr(
        kv_speed,
        "child",
        lambda policy, model, dtype, text, tokens: kv_speed.measure(policy, model, dtype, text and str(text), tokens),
    )
    policies = ("stock", "full", SQUEEZED, SQUEEZED.replace("60", "40"), ENDS)
    asked: dict[str, Any] = {"contexts": (100, 200), "policies": policies, "dtype": "float32", "tile": 400}
    asked["text"] = tmp_path / "text.txt"
    asked["text"].write_text("the code of the room is in the river street. " * 50)
    asked |= {"rounds": 2, "repeats": 2, "steps": 2}
    path = bench_kv.run_kv(str(folder), tmp_path, **asked)
    rows = rows_of(path)
    read = [(row["context"], row["method"], row["round"]) for row in rows if row["measure"] == "read"]
    once = [(SQUEEZED, 0), (ENDS, 0)]  # the other budget of squeezed reads and indexes the same
    each = [("stock", 0), ("stock", 1), ("full", 0), ("full", 1), *once]
    assert sorted(read) == sorted((tokens, *one) for tokens in (100, 200) for one in each)
    decoded = {(row["context"], row["tile"], row["method"]): row for row in rows if row["measure"] == "decode"}
    assert set(decoded) == {
        *((tokens, 0, policy) for tokens in (100, 200) for policy in policies),
        *((200, 400, policy) for policy in policies if policy != ENDS),
    }
    assert all(len(row["tokens_per_second"]) == 2 and row["least"] > 0 for row in decoded.values())
    assert decoded[100, 0, "full"]["read_share"] == decoded[200, 400, "full"]["read_share"] == 1
    turns = {row["turns"] for row in decoded.values() if row["context"] == 200 and not row["tile"]}
    assert len(turns) == 1 and decoded[100, 0, "full"]["turns"] not in turns
    assert decoded[200, 400, "full"]["read_keys"] == 400 and decoded[200, 400, SQUEEZED]["slots"] == 60
    assert 18 <= decoded[200, 400, SQUEEZED]["read_keys"] <= 60 and decoded[100, 0, "stock"]["read_keys"] is None
    assert decoded[100, 0, SQUEEZED]["lookup_bytes"] > 0 == decoded[100, 0, "full"]["lookup_bytes"]
    peaks = [row for row in rows if row["measure"] == "read" and row["peak_bytes"] is not None]
    assert all(row["peak_bytes"] > 0.9 * row["loaded_bytes"] > 0 for row in peaks)  # the kernel rounds both
    before = path.read_bytes()
    assert bench_kv.run_kv(str(folder), tmp_path, **asked).read_bytes() == before  # all rows are there
    with pytest.raises(ArtifactError, match="steps was 2 and is 3"):
        bench_kv.run_kv(str(folder), tmp_path, **{**asked, "steps": 3})
    path.write_bytes(before.replace(b'"mass": 1.0', b'"mass": 0.95'))  # of a time when the default was another
    with pytest.raises(ArtifactError, match="options was .*'mass': 0.95.* and is .*'mass': 1.0"):
        bench_kv.run_kv(str(folder), tmp_path, **asked)
    page = (tmp_path / "kv.md").read_text()
    assert "### Reading 200 tokens" in page and "### Decoding behind 200 tokens tiled to 400" in page


def test_stock_and_full_decode_the_same_tokens_behind_one_reading() -> None:
    """What is timed is the same work."""
    model = tiny.model("llama", max_position_embeddings=4096)
    ids = torch.randint(4, 470, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    reading = longctx.kv.read(model, ids)
    said = []
    for context in (None, reading.compress("full")):
        with kv_speed._cache(model, reading, context) as cache:
            token, own = ids[-1], []
            for _ in range(6):
                token = kv_speed._next(model, cache, token)
                own.append(token)
        said.append(own)
    assert (
        said[0]
        == said[1]
        == model.generate(torch.tensor([[*ids, ids[-1]]]), do_sample=False, max_new_tokens=6, min_new_tokens=6)[
            0, 61:
        ].tolist()
    )


def test_quality_asks_every_policy_what_the_full_cache_was_asked(
    folder: Path, paragraphs: Path, tmp_path: Path
) -> None:
    tight, small = "squeezed:budget=10,sinks=4,recent=10", "lm_infinite:keep=0.01"
    asked: dict[str, Any] = {
        "source": "xquad", "data": paragraphs, "contexts": (120, 200), "policies": (SQUEEZED, ENDS, tight, small),
        "sample": 3, "max_new_tokens": 5, "dtype": "float32", "audit": 1,
    }  # fmt: skip
    path = bench_kv.run_kv(str(folder), tmp_path, **asked)
    rows = rows_of(path)
    assert {row["policy"] for row in rows} == {"full", SQUEEZED, ENDS, tight, small} and len(rows) == 2 * 3 * 5
    for row in rows:
        if row["policy"] in (tight, small):  # a budget that is none, and a share that leaves no choice
            assert row["error"]["kind"] == "BadOption" and "score" not in row
        if row["policy"] == "full":
            assert row["same"] and abs(row["loss"]) < 1e-6 and row["read_share"] == 1
        if row["policy"] == SQUEEZED:
            assert 0 < row["read_share"] < 1 and row["slots"] == 60 and row["true_unread_share"] > 0
    # an interrupted run makes what is missing, and the same again
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:7]) + lines[7][:20])
    again = rows_of(bench_kv.run_kv(str(folder), tmp_path, **asked))
    changing = {"seconds", "prefill_seconds", "made_seconds"}

    def lasting(row: dict[str, Any]) -> str:
        return json.dumps({name: value for name, value in row.items() if name not in changing}, sort_keys=True)

    assert sorted(map(lasting, again)) == sorted(map(lasting, rows))
    assert all(("made_seconds" in row) == ("score" in row) for row in rows)
    # another text of the same name is not what the rows were made with
    other = tmp_path / "other"
    other.mkdir()
    data = (paragraphs / "rows.jsonl").read_text()
    (other / "rows.jsonl").write_text(data.replace("river", "stone"))
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match="another text called 'xquad, 120 tokens'"):
        bench_kv.run_kv(str(folder), tmp_path, **{**asked, "data": other})
    assert path.read_bytes() == before
    page = (tmp_path / "kv.md").read_text()
    assert "### 120 tokens" in page and "### The stated bound" in page


def test_the_loss_is_that_of_one_token_after_another() -> None:
    """Against passes of one token each, written out, on a cache that says something else than the full one."""
    model = tiny.model("llama")
    ids = torch.randint(4, 470, (80,), generator=torch.Generator().manual_seed(2)).tolist()
    question = ids[:7]
    whole = kv_quality_answer(model, ids, question, "full", 8)
    context = longctx.kv.compress(model, ids, "lm_infinite:budget=16,sinks=2,window=8")
    with context.attached(model) as cache:
        logs, own = kv_quality.follow(model, cache, question, whole, 8, set())
    with context.attached(model) as cache, torch.inference_mode():
        expected, token_ids = [], question
        for token in whole:
            likely = model(torch.tensor([token_ids]), past_key_values=cache).logits[0, -1].log_softmax(-1)
            expected.append(float(likely[token]))
            token_ids = [token]
    assert logs == pytest.approx(expected, abs=1e-5)
    with context.attached(model) as cache:
        assert own == kv_quality.greedy(model, cache, question, 8, set()).tokens
    assert own != whole  # or nothing was shown here


def kv_quality_answer(model: Any, ids: list[int], question: list[int], policy: str, most: int) -> tuple[int, ...]:
    with longctx.kv.compress(model, ids, policy).attached(model) as cache:
        return kv_quality.greedy(model, cache, question, most, set()).tokens


def test_an_answer_ends_with_its_end_token_and_no_later() -> None:
    model = tiny.model("llama")
    ids = list(range(4, 60))
    free = kv_quality_answer(model, ids, ids[:5], "full", 6)
    with longctx.kv.compress(model, ids, "full").attached(model) as cache:
        ended = kv_quality.greedy(model, cache, ids[:5], 6, {free[2]}).tokens
    assert ended == free[: free.index(free[2]) + 1]


def test_needles_stand_in_their_text_and_are_scored(folder: Path) -> None:
    tokenizer = tiny.tokenizer("system")
    found = list(kv_sources.needles(tokenizer, "number", (1500,), (0, 1), 4, None))
    assert len(found) == 2 and found[0].text != found[1].text
    for source in found:
        for question in source.questions:
            key = re.search(r"[A-Z]\w+(?: [A-Z]\w+)?", question.prompt[1:])
            assert key is not None
            (number,) = re.findall(rf"{key[0]}\b[^.]*?\b(\d{{5}})\b", source.text)
            assert question.score(f"It is {number}.") == {"said": 1.0} and question.score("none") == {"said": 0.0}


def test_facts_that_a_text_holds_one_of_have_a_text_each() -> None:
    found = list(kv_sources.needles(tiny.tokenizer(), "passkey", (1500,), (0,), 3, None))
    assert [source.document for source in found] == [f"passkey, 1500 tokens, seed 0, fact {i}" for i in range(3)]
    for source in found:
        (number,) = set(re.findall(r"\d{5}", source.text))
        assert [question.score(number) for question in source.questions] == [{"said": 1.0}]


def test_suites_give_documents_of_the_lengths_asked_for(tmp_path: Path) -> None:
    rows = [{"question": "what?", "answer": "room", "document": "the room " * count} for count in (5, 50, 500)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny.tokenizer()
    found = list(kv_sources.suite(tokenizer, "freeform", tmp_path, 9, 7, 60, 400))
    assert [source.text for source in found] == [rows[1]["document"]]
    assert found[0].questions[0].score("The room.")["contains"] == 1
    with pytest.raises(UsageError, match="no document of freeform with 5,000"):
        list(kv_sources.suite(tokenizer, "freeform", tmp_path, 9, 7, 5000, 6000))


def test_some_documents_of_a_suite_are_drawn_with_all_their_questions(tmp_path: Path) -> None:
    asked = [{"question": f"what {number}?", "answer": "room"} for number in range(3)]
    rows = [{"document": f"room {count} " * 30, **question} for count in range(6) for question in asked]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def drawn(documents: int, seed: int) -> list[str]:
        found = kv_sources.suite(tiny.tokenizer(), "freeform", tmp_path, 99, seed, 1, 9000, documents)
        return [f"{source.text[:6]} {len(source.questions)}" for source in found]

    every = drawn(0, 7)
    assert sorted(every) == [f"room {count} 3" for count in range(6)] and every != sorted(every)
    assert drawn(2, 7) == every[:2]  # more documents hold the fewer
    assert len({tuple(drawn(2, seed)) for seed in range(9)}) > 3


@pytest.mark.parametrize(
    ("template", "turns", "last"), [("base", 0, "Answer:"), ("system", 2, "assistant"), ("no_system", 1, "model")]
)
def test_context_and_question_are_the_turn_of_a_chat_that_no_text_can_end(template: str, turns: int, last: str) -> None:
    tokenizer = tiny.tokenizer(template)
    frame = kv_sources.Frame(tokenizer)
    ids = [*frame.context(f"the {tiny.END} room"), *frame.question("what?")]
    assert ids.count(tokenizer.convert_tokens_to_ids(tiny.END)) == turns
    assert f"the {tiny.END} room\n\nwhat?" in tokenizer.decode(ids) and tokenizer.decode(ids).rstrip().endswith(last)
    plain = kv_sources.Frame(tokenizer, chat=False)
    assert tokenizer.decode([*plain.context("the room"), *plain.question("what?")]).endswith(
        "the room\n\nwhat?\n\nAnswer:"
    )


def test_the_page_holds_policies_against_the_full_cache_on_the_same_questions() -> None:
    def row(question: str, policy: str, score: float, loss: float) -> dict[str, Any]:
        return {
            "document": "d", "question": question, "policy": policy, "score": score, "loss": loss, "same": False,
            "read_share": 0.25, "lookup_bytes": 2**21,
        }  # fmt: skip

    rows = [row("1", "full", 1.0, 0.0), row("2", "full", 1.0, 0.0), row("3", "full", 0.0, 0.0)]
    rows += [row("1", "quest", 0.0, 0.5), row("2", "quest", 1.0, 0.1)]
    line = next(line for line in kv_report.quality(rows) if line.startswith("| quest"))
    low, high = interval([100.0, 100.0], [0.0, 100.0])
    least, most = interval([0.5, 0.1], [0.0, 0.0])
    assert line == (
        f"| quest | 2 | 25.0 % | 2.0 | 50.0 | 50.0 ({low:.1f} to {high:.1f}) | 0.300 ({least:.3f} to {most:.3f}) | "
        "0 % | 0 |"
    )


def test_the_page_holds_suites_in_one_file_together_and_apart(tmp_path: Path) -> None:
    def row(source: str, question: str, policy: str, score: float) -> dict[str, Any]:
        return {
            "document": source, "question": question, "policy": policy, "score": score, "loss": 0.0, "same": False,
            "read_share": 0.25, "lookup_bytes": 2**21, "date": "2026-01-01", "machine": "m", "made_with":
            {"source": source, "seed": 7, "options": {"budget": policy}},
        }  # fmt: skip

    scores = {"leval": [1.0, 0.0], "longbench": [1.0, 1.0, 0.0]}
    rows = [row(s, str(n), "full", 1.0) for s, own in scores.items() for n in range(len(own))]
    rows += [row(s, str(n), "quest", one) for s, own in scores.items() for n, one in enumerate(own)]
    (tmp_path / "kv-both-m.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    page = "\n".join(kv_report.tables(tmp_path))
    assert "source leval and longbench; seed 7. m" in page
    shown = [line.split(" | ")[1:5:3] for line in page.splitlines() if line.startswith("| quest |")]
    assert shown == [["5", "60.0"], ["2", "50.0"], ["3", "66.7"]]
    alone = "\n".join(kv_report.quality([one for one in rows if one["document"] == "leval"]))
    assert alone.count("| quest |") == 1


def test_the_page_compares_speeds_repeat_by_repeat() -> None:
    def row(method: str, rates: list[float]) -> dict[str, Any]:
        return {
            "measure": "decode", "context": 8000, "tile": 0, "method": method, "tokens_per_second": rates,
            "median": sorted(rates)[1], "least": min(rates), "most": max(rates), "slots": 8000, "read_keys": None,
            "read_share": None, "lookup_bytes": None,
        }  # fmt: skip

    lines = kv_report.speed([row("stock", [1.0, 2.0, 4.0]), row("full", [3.0, 4.0, 16.0])])
    assert "| full | 4.00 | 3.00 to 16.00 | 3.00 | 1.00 | 8,000 |  |  |  |" in lines
    # what did not take turns is not compared: another run's, be it of another number of repeats
    lines = kv_report.speed([row("stock", [1.0, 2.0]), row("full", [3.0, 4.0, 16.0])])
    assert "| full | 4.00 | 3.00 to 16.00 |  | 1.00 | 8,000 |  |  |  |" in lines
    apart = [row("stock", [1.0, 2.0, 4.0]) | {"turns": "a"}, row("full", [3.0, 4.0, 16.0]) | {"turns": "b"}]
    assert "| full | 4.00 | 3.00 to 16.00 |  | 1.00 | 8,000 |  |  |  |" in kv_report.speed(apart)


def test_what_cannot_be_measured_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="multiple of the last context, 2000"):
        bench_kv.run_kv("nowhere", tmp_path, contexts=(1000, 2000), tile=5000, policies=("full",))
    with pytest.raises(BadOption, match="repeats=0, .*at least 1"):
        bench_kv.run_kv("nowhere", tmp_path, repeats=0)
    with pytest.raises(BadOption, match=r"contexts=\(1000, 0\), .*at least 1"):
        bench_kv.run_kv("nowhere", tmp_path, contexts=(1000, 0))
    with pytest.raises(UsageError, match="nonsense"):
        bench_kv.run_kv("nowhere", tmp_path, policies=("nonsense",))
    with pytest.raises(BadOption, match="budget of 125 slots of 1000"):
        bench_kv.run_kv("nowhere", tmp_path, contexts=(9000, 1000))
    assert not list(tmp_path.iterdir())
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not text in UTF-8"):
        kv_speed.ids_of(tiny.tokenizer(), tmp_path / "bytes.txt", 1)


def test_settings_are_read_as_the_types_of_the_keywords() -> None:
    known = keywords.of(bench_kv.run_kv)
    sets = ["contexts=8k,16k", "policies=squeezed:keep=0.125,mode=paper", "policies=full", "tile=1M", "text=a.txt"]
    assert keywords.read("kv", known, sets) == {
        "contexts": (8000, 16000),
        "policies": ("squeezed:keep=0.125,mode=paper", "full"),
        "tile": 1_000_000,
        "text": Path("a.txt"),
    }
    assert keywords.read("kv", known, ["chat=False"]) == {"chat": False}
    for wrong in (["contexts=many"], ["colour=red"], ["tile"], ["tile=1k", "tile=2k"], ["chat=maybe"]):
        with pytest.raises(BadOption):
            keywords.read("kv", known, wrong)
