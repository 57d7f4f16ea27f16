"""Long question answering on a set made here: rows once and resumed, equal budgets, one compilation, refusals."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from answer_rows import made, rows
from rooms import NAMES, document, written

from longctx import Document, Reader
from longctx.errors import ArtifactError, BadOption, DoesNotFit, UnknownMethod, UsageError
from longctx.types import Scores

pytestmark = pytest.mark.usefixtures("one_thread")

long_qa = importlib.import_module("longctx.pipelines.long_qa")
systems = importlib.import_module("longctx.pipelines.systems")
rows_module = importlib.import_module("longctx.pipelines.long_qa_rows")
estimates = importlib.import_module("longctx.pipelines.long_qa_estimate")
cases = importlib.import_module("longctx.pipelines.cases")

SYSTEMS = ("bm25", "head", "middle", "closed_book", "full")
SETTINGS = {"model": "/a/place/tiny-model", "encoder": "none"}


@pytest.fixture(scope="module")
def reader() -> Reader:
    model = tiny.model("llama", num_hidden_layers=2, max_position_embeddings=2048)
    return Reader(model, tiny.tokenizer("system"), encoder=None, calibration=None, segment_tokens=64)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return written(tmp_path)


def job(data: Path, out: Path, **options: Any) -> Any:
    given = {"systems": SYSTEMS, "budgets": (130, 200), "max_new_tokens": 3}
    return long_qa.Job("freeform", data, out, SETTINGS, **{**given, **options})


def test_every_system_answers_every_question_within_its_budget(data: Path, tmp_path: Path, reader: Reader) -> None:
    path = job(data, tmp_path / "out").run(lambda: reader)
    found = rows(path)
    assert path.name == "freeform-tiny-model.jsonl"
    cells = [("bm25", 130), ("bm25", 200), ("head", 130), ("head", 200), ("middle", 130), ("middle", 200)]
    cells += [("closed_book", 0), ("full", None)]
    assert len(found) == 6 * len(cells) and {(row["system"], row["budget"]) for row in found} == set(cells)
    scored = [row for row in found if "score" in row]
    assert all(0 < row["context_tokens"] <= row["budget"] for row in scored if row["budget"])
    assert all(row["context_tokens"] == row["document_tokens"] for row in scored if row["budget"] is None)
    assert {row["document"] for row in found if "error" in row} == {"rooms-3"}
    assert {row["system"] for row in found if "error" in row} == {"full"}
    assert all(row["new_tokens"] <= 3 for row in scored)


def test_a_row_holds_the_score_of_what_was_said(
    data: Path, tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Reader.ask

    def knowing(self: Reader, shown: Document, question: str, **options: Any) -> Any:
        text = "In room 4711." if "4711" in shown.text else "In room 12."
        return replace(ask(self, shown, question, **options), text=text)

    monkeypatch.setattr(Reader, "ask", knowing)
    found = rows(job(data, tmp_path / "out").run(lambda: reader))
    scored = {name: {row["score"] for row in found if row["system"] == name and "score" in row} for name in SYSTEMS}
    assert scored["bm25"] == scored["full"] == {1.0} and scored["head"] == scored["closed_book"] == {0.0}
    said = next(row for row in found if row["system"] == "full" and "score" in row)
    assert said["scores"] == {"contains": 1.0, "token_f1": 0.8} and said["metric"] == "contains"
    assert said["spans"] == [[0, len(document("Odette", 9))]] and not said["graded"]


def test_rows_hold_no_text_and_no_path(data: Path, tmp_path: Path, reader: Reader) -> None:
    text = job(data, tmp_path / "out").run(lambda: reader).read_text(encoding="ascii")
    assert not any(word in text for word in ("lamp", "market", "room 4711", "/a/place", str(tmp_path)))
    row = json.loads(text.splitlines()[0])
    real = {"device": "cpu", "dtype": "float32"}
    assert row["configuration"] == {"model": "tiny-model", "encoder": "none", **real} and "answer" not in row
    kept = rows(job(data, tmp_path / "kept", keep_answers=True).run(lambda: reader))[0]
    assert kept["answer"] and long_qa.digest(kept["answer"]) == row["answer_sha256"]


def test_one_compilation_serves_all_questions_of_a_document(
    data: Path, tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    compile_, select = Reader.compile, Reader.select

    def compiling(self: Reader, document: Document, **options: Any) -> Any:
        calls.append(document.id)
        return compile_(self, document, **options)

    def selecting(self: Reader, book: Any, query: str, **options: Any) -> Any:
        calls.append(options["selector"])
        return select(self, book, query, **options)

    monkeypatch.setattr(Reader, "compile", compiling)
    monkeypatch.setattr(Reader, "select", selecting)
    job(data, tmp_path / "out").run(lambda: reader)
    assert [name for name in calls if "rooms" in name] == ["rooms-1", "rooms-2", "rooms-3"]
    assert calls[:4] == ["beginning", "bm25", "head", "rooms-1"], "what a model needs once was not made first"
    calls.clear()
    job(data, tmp_path / "out").run(lambda: reader)
    assert calls == []


def test_a_system_shows_what_the_reader_would_read_of_a_selection(reader: Reader) -> None:
    asked = "Where is the lamp of Odette?"
    question = cases.Question("0", asked, asked, (cases.Measure("contains", ("4711",)),), 5)
    book = reader.compile(Document.from_text(document("Odette", 30)))

    @dataclass(frozen=True)
    class Doubting:
        relevant: bool
        baseline = False
        name = "doubting"

        def score(self, question: str, book: Any, budget_tokens: int) -> Scores:
            values = [9.0 if at == 3 else float(at % 2) for at in range(len(book.units))]
            return Scores(np.array(values, dtype=np.float32), self.relevant, floor=0.2)

    shown = systems.show(reader, book, question, Doubting(True), 150)  # type: ignore[arg-type]
    best, *others = sorted(
        reader.select(book, asked, budget_tokens=150, selector=Doubting(True)).spans, key=lambda s: -s.score
    )
    assert others and shown.spans == ((best.start, best.end),)
    assert shown.text == book.documents[0].text[best.start : best.end].strip("\r\n")
    assert shown.tokens == len(reader.tokenizer(shown.text, add_special_tokens=False)["input_ids"])
    shown = systems.show(reader, book, question, Doubting(False), 150)  # type: ignore[arg-type]
    assert (shown.text, shown.tokens, shown.spans) == ("", 0, ()) and systems.answer(reader, shown, question).text == ""


def test_a_system_shows_and_says_what_the_reader_would(reader: Reader) -> None:
    """One call for all systems is not a second way to answer: a selector's row is the answer of ``ask``."""
    asked = "Where is the lamp of Odette?"
    question = cases.Question("0", asked, asked, (cases.Measure("contains", ("4711",)),), 5)
    book = reader.compile(Document.from_text(document("Odette", 30)))
    shown = systems.show(reader, book, question, "bm25", 150)
    direct = reader.ask(book, asked, budget_tokens=150, selector="bm25", max_new_tokens=5)
    said = systems.answer(reader, shown, question)
    assert sorted(shown.text.split("\n\n")) == sorted(direct.selection.text.split("\n\n")) and "4711" in shown.text
    assert (said.text, said.prompt_tokens) == (direct.text, direct.usage["prompt_tokens"])


def test_answers_are_decoded_token_by_token_as_drafts_follow_the_clock(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 16 bits passes of other lengths round otherwise, and a run that was stopped would not go on as it began."""
    asked, ours = list[Any](), Reader.ask
    monkeypatch.setattr(Reader, "ask", lambda *given, **how: asked.append(ours(*given, **how)) or asked[-1])
    question = cases.Question("0", "Where?", "Where?", (cases.Measure("contains", ("4711",)),), 30)
    text = document("Odette", 10)
    assert systems.answer(reader, systems.Context(text, 1, (), 0, 0.0), question).text
    (said,) = asked
    decoded = next(step.facts for step in said.trace if step.name == "decode")
    assert decoded["drafted"] == 0 and decoded["rounds"] == decoded["new_tokens"] > 1


def test_middle_keeps_both_ends_token_by_token(reader: Reader) -> None:
    text = document("Odette", 60)
    question = cases.Question("0", "Where?", "Where?", (cases.Measure("contains", ("4711",)),), 5)
    book = reader.compile(Document.from_text(text))
    shown = systems.show(reader, book, question, "middle", 100)
    (first, last) = shown.spans
    assert first[0] == 0 and last[1] == len(text) and shown.text == text[: first[1]] + text[last[0] :]
    assert 96 <= shown.tokens <= 100
    ids = reader.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert text[: first[1]] == reader.tokenizer.decode(ids[: shown.tokens // 2])
    assert text[last[0] :] == reader.tokenizer.decode(ids[-(shown.tokens // 2) :])
    short = reader.compile(Document.from_text("The lamp."))
    assert systems.show(reader, short, question, "middle", 100).text == "The lamp."


def test_a_budget_beyond_the_window_is_no_hindrance_to_a_short_document(reader: Reader) -> None:
    question = cases.Question("0", "Where?", "Where?", (cases.Measure("contains", ("4711",)),), 5)
    short = reader.compile(Document.from_text("The lamp of Odette stands in room 4711."))
    long = reader.compile(Document.from_text(document("Odette", 90)))
    for system in ("bm25", "middle", "full"):
        assert systems.show(reader, short, question, system, 5_000).text == short.documents[0].text
        with pytest.raises(DoesNotFit, match="do not fit: the window of 2,048 leaves"):
            systems.show(reader, long, question, system, 5_000)


def test_rows_are_made_once_and_an_interrupted_run_goes_on(data: Path, tmp_path: Path, reader: Reader) -> None:
    """The test of this had no selector that reads, so it did not see that a resumed run reads again."""
    names = ("xl3m", *SYSTEMS)
    once = job(data, tmp_path / "once", systems=names).run(lambda: reader)
    path = job(data, tmp_path / "out", systems=names, sample=2).run(lambda: reader)
    part = b"".join(path.read_bytes().splitlines(keepends=True)[:-9])  # stopped between two budgets of one question
    path.write_bytes(part + b'{"suite": "free')
    job(data, tmp_path / "out", systems=names).run(lambda: reader)
    assert path.read_bytes().startswith(part)

    def lasting(path: Path) -> list[str]:
        left = {"date", "seconds", "tokens_read"}
        return sorted(str({key: value for key, value in row.items() if key not in left}) for row in rows(path))

    assert lasting(path) == lasting(once)
    read = [{rows_module.key(row): row.get("tokens_read") for row in rows(file)} for file in (path, once)]
    assert read[0] != read[1], "nothing was read twice: the test shows nothing"
    said = " ".join((tmp_path / "out" / "freeform.md").read_text(encoding="utf-8").split())
    assert "a run that was stopped reads again what it had read" in said
    untouched = path.read_bytes()
    job(data, tmp_path / "out", systems=names).run(lambda: reader)
    assert path.read_bytes() == untouched


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 8}, "seed was 7 and is 8"),
        ({"settings": {**SETTINGS, "splitter": "sentences"}}, "splitter was None and is 'sentences'"),
        ({"max_new_tokens": 2}, "max_new_tokens of question '1' has changed"),
    ],
)
def test_rows_of_other_conditions_are_refused_with_the_difference(
    change: dict[str, Any], said: str, data: Path, tmp_path: Path, reader: Reader
) -> None:
    small = {"systems": ("head",), "budgets": (130,)}
    path = job(data, tmp_path / "out", **small).run(lambda: reader)
    before = path.read_bytes()
    settings = change.pop("settings", SETTINGS)
    given = {"max_new_tokens": 3, **small, **change}
    with pytest.raises(ArtifactError, match=said):
        long_qa.Job("freeform", data, tmp_path / "out", settings, **given).run(lambda: reader)
    assert path.read_bytes() == before


def test_rows_of_another_device_or_dtype_are_refused_whatever_was_asked_for(tmp_path: Path) -> None:
    """Rows held "auto", so that those of a processor and of a GPU could stand in one file."""
    settings = {"model": "m", "device": "auto", "dtype": "auto"}

    def about(device: str, dtype: torch.dtype, asked: dict[str, str] = settings) -> Any:
        model = SimpleNamespace(device=torch.device(device), dtype=dtype)
        reader = SimpleNamespace(model=model, fingerprint="f", window=9)
        return rows_module.about_run(reader, "freeform", "m", asked, 7, 1)

    first = about("cpu", torch.float32)
    assert (first["configuration"]["device"], first["configuration"]["dtype"]) == ("cpu", "float32")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**made("head", 0, 1.0), **first}) + "\n", encoding="ascii")
    named = {"model": "m", "device": "cpu", "dtype": "float32"}
    assert len(rows_module.held(path, about("cpu", torch.float32, named), [])) == 1
    with pytest.raises(ArtifactError, match="device was 'cpu' and is 'cuda'; dtype was 'float32' and is 'bfloat16'"):
        rows_module.held(path, about("cuda:0", torch.bfloat16), [])


def test_rows_of_other_data_are_refused(data: Path, tmp_path: Path, reader: Reader) -> None:
    small = {"systems": ("head",), "budgets": (130,)}
    job(data, tmp_path / "out", **small).run(lambda: reader)
    file = data / "freeform" / "rooms.jsonl"
    file.write_text(file.read_text().replace('"room 4711"', '"room 4712"'))
    with pytest.raises(ArtifactError, match="question_sha256 of question '1' has changed"):
        job(data, tmp_path / "out", **small).run(lambda: reader)


def test_a_larger_sample_holds_a_smaller_one_and_another_seed_another() -> None:
    every = [cases.Case("t", str(d), "text", tuple(f"{d}-{q}" for q in range(5))) for d in range(6)]

    def drawn(sample: int, seed: int) -> set[str]:
        return {question for case in long_qa.draw(every, sample, seed) for question in case.questions}

    assert len(drawn(7, 1)) == 7 and drawn(7, 1) == drawn(7, 1) and drawn(7, 1) < drawn(12, 1)
    assert drawn(7, 1) != drawn(7, 2) and len(drawn(99, 1)) == 30


def test_what_cannot_work_is_refused_before_a_model_is_loaded(data: Path, tmp_path: Path) -> None:
    def never() -> Any:
        raise AssertionError("a reader was made")

    for change, error in (
        ({"systems": ("bm26",)}, UnknownMethod),
        ({"systems": ("bm25:speed=3",)}, BadOption),
        ({"budgets": (0,)}, BadOption),
        ({"budgets": ()}, BadOption),
        ({"sample": 0}, BadOption),
        ({"max_new_tokens": 0}, BadOption),
        ({"data": tmp_path / "out"}, UsageError),
    ):
        given = {"data": data, **change}
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(error):
            job(out=tmp_path / "rows", **given).run(never)
    with pytest.raises(BadOption, match=r"budgets=\(0,\), sample=0 and max_new_tokens=3 must be at least 1"):
        job(out=tmp_path / "rows", data=data, budgets=(0,), sample=0).run(never)
    with pytest.raises(UnknownMethod, match="Known: .*leval"):
        long_qa.read_cases("weather", data)


def test_an_estimate_counts_what_is_missing_and_writes_nothing(data: Path, tmp_path: Path, reader: Reader) -> None:
    asked = job(data, tmp_path / "out", systems=("bm25", "full"), budgets=(130,))
    found = estimates.estimate(asked, reader)
    counts = [len(reader.tokenizer(document(n, w))["input_ids"]) for n, w in zip(NAMES, (9, 12, 90), strict=True)]
    assert (found.questions, found.documents, found.rows) == (6, 3, 12)
    assert found.document_tokens == sum(counts)
    assert found.most_shown_tokens == 6 * 130 + 2 * sum(counts) and found.most_new_tokens == 12 * 3
    assert found.total_seconds > 0 and not (tmp_path / "out").exists()
    asked.run(lambda: reader)
    assert estimates.estimate(asked, reader).rows == 0
