"""Many questions, one file of answers: each row whole, none made twice, none mixed with those of other settings."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner

from longctx import Document
from longctx.cli import app
from longctx.errors import ArtifactError, DoesNotFit, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

document_qa = importlib.import_module("longctx.pipelines.document_qa")
DOCUMENTS = [Document.from_text("Tobin keeps the kettle.", "a.txt"), Document.from_text("Mara has a lamp.", "b.txt")]
SETTINGS = {"model": "m", "budget": 100}


class Answer:
    def __init__(self, text: str) -> None:
        self.text = text

    def as_dict(self) -> dict[str, Any]:
        return {"text": self.text}


class Reader:
    """Counts what is asked of it; a question in ``failing`` raises."""

    def __init__(self, failing: dict[str, BaseException] | None = None) -> None:
        self.compiled, self.questions, self.failing = 0, list[str](), failing or {}

    def compile(self, documents: Sequence[Document], progress: Any) -> str:
        self.compiled += 1
        return "book"

    def ask(self, book: str, question: str, **asked: Any) -> Answer:
        assert book == "book" and asked["budget_tokens"] == 100
        self.questions.append(question)
        if question in self.failing:
            raise self.failing[question]
        return Answer(f"answer to {question}")


def questions(*texts: str) -> Any:
    return [document_qa.Question(str(number), text) for number, text in enumerate(texts, 1)]


def run(out: Path, reader: Reader, *texts: str, settings: Any = SETTINGS, documents: Any = DOCUMENTS) -> Any:
    return document_qa.run(lambda: reader, documents, questions(*texts), out, settings, budget_tokens=100)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def test_one_compilation_answers_every_question_in_order(out: Path) -> None:
    reader = Reader()
    outcome = run(out, reader, "who?", "what?", "where?")
    assert (outcome.rows, outcome.skipped, outcome.failed) == (3, 0, 0)
    assert reader.compiled == 1 and reader.questions == ["who?", "what?", "where?"]
    found = rows(out)
    assert [(row["id"], row["question"], row["text"]) for row in found] == [
        ("1", "who?", "answer to who?"),
        ("2", "what?", "answer to what?"),
        ("3", "where?", "answer to where?"),
    ]
    assert all(row["configuration"] == SETTINGS and len(row["documents"]["a.txt"]) == 64 for row in found)


def test_rows_that_are_there_are_not_made_again(out: Path) -> None:
    run(out, Reader(), "who?")
    before, reader = out.read_bytes(), Reader()
    assert run(out, reader, "who?", "what?").skipped == 1
    assert reader.questions == ["what?"] and out.read_bytes().startswith(before)
    untouched = out.read_bytes()
    assert run(out, Reader({"who?": AssertionError()}), "who?", "what?").skipped == 2
    assert out.read_bytes() == untouched


def test_a_finished_file_loads_no_model(out: Path) -> None:
    run(out, Reader(), "who?")

    def never() -> Any:
        raise AssertionError("a reader was made")

    assert document_qa.run(never, DOCUMENTS, questions("who?"), out, SETTINGS, budget_tokens=100).rows == 1


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_half_written_last_row_is_made_again(cut: int, out: Path) -> None:
    run(out, Reader(), "who?", "what?")
    whole = out.read_bytes()
    out.write_bytes(whole[:-cut])
    reader = Reader()
    run(out, reader, "who?", "what?")
    assert reader.questions == ["what?"] and out.read_bytes() == whole


def test_a_half_written_row_leaves_nothing_behind_however_long_it_was(out: Path) -> None:
    run(out, Reader(), "who?")
    whole = out.read_bytes()
    out.write_bytes(whole + b'{"id": "2", ' + b"x" * 9000)
    run(out, Reader(), "who?", "what?")
    assert [row["id"] for row in rows(out)] == ["1", "2"] and out.read_bytes().startswith(whole)


def test_rows_before_a_stop_are_whole(out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(out, Reader({"what?": KeyboardInterrupt()}), "who?", "what?", "where?")
    assert [row["id"] for row in rows(out)] == ["1"] and out.read_bytes().endswith(b"\n")
    reader = Reader()
    run(out, reader, "who?", "what?", "where?")
    assert reader.questions == ["what?", "where?"] and len(rows(out)) == 3


@pytest.mark.parametrize(
    ("settings", "documents", "texts", "said"),
    [
        ({**SETTINGS, "budget": 200}, DOCUMENTS, ["who?"], "budget was 100 and is 200"),
        ({"budget": 100}, DOCUMENTS, ["who?"], "model was 'm' and is None"),
        (SETTINGS, DOCUMENTS[:1], ["who?"], "document 'b.txt' is gone"),
        (SETTINGS, [DOCUMENTS[0], Document.from_text("other", "b.txt")], ["who?"], "document 'b.txt' has changed"),
        (SETTINGS, DOCUMENTS, ["when?"], "question '1' was 'who\\?'"),
    ],
)
def test_rows_of_other_settings_are_refused_with_the_difference(
    settings: Any, documents: Any, texts: list[str], said: str, out: Path
) -> None:
    run(out, Reader(), "who?")
    before, reader = out.read_bytes(), Reader()
    with pytest.raises(ArtifactError, match=said):
        run(out, reader, *texts, settings=settings, documents=documents)
    assert out.read_bytes() == before and reader.compiled == 0


@pytest.mark.parametrize("content", ["A diary, and no rows.", "A diary.\n", '{"id": 1}\n', '[1]\n{"id": '])
def test_a_file_of_something_else_is_never_touched(content: str, out: Path) -> None:
    out.write_text(content)
    with pytest.raises(ArtifactError, match="nothing was changed"):
        run(out, Reader(), "who?")
    assert out.read_text() == content


def test_a_question_that_cannot_be_asked_does_not_stop_the_others(out: Path) -> None:
    reader = Reader({"what?": DoesNotFit("too long")})
    outcome = run(out, reader, "who?", "what?", "where?")
    assert outcome.failed == 1 and reader.questions == ["who?", "what?", "where?"]
    assert rows(out)[1]["error"] == {"kind": "DoesNotFit", "message": "too long"}
    again = run(out, Reader(), "who?", "what?", "where?")  # what failed has failed also where nothing is left to ask
    assert (again.rows, again.skipped, again.failed) == (3, 3, 1)
    more = run(out, Reader(), "who?", "what?", "where?", "when?")
    assert (more.rows, more.skipped, more.failed) == (4, 3, 1)
    assert run(out, Reader(), "who?").failed == 0  # of the questions that are asked


def test_questions_are_rows_or_lines(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text('\ufeffWho is it?\n\n{"question": "What?", "id": 7}\n{"question": "Where?"}\n', encoding="utf-8")
    found = [(question.id, question.text) for question in document_qa.read_questions(path)]
    assert found == [("1", "Who is it?"), ("7", "What?"), ("3", "Where?")]


def test_a_question_may_hold_what_else_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "a\u2028b"}\r\n{"question": "c\u0085d"}\n', encoding="utf-8")
    assert [question.text for question in document_qa.read_questions(path)] == ["a\u2028b", "c\u0085d"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no questions"),
        (b"\n \n", "no questions"),
        (b'{"question": }\n', "line 1: not JSON"),
        (b'{"question": "a?"}\n{"id": 3}\n', 'line 2: no object with text as its "question"'),
        (b"[" * 100_000, "line 1: not JSON"),
        (b'["a?"]\n', 'line 1: no object with text as its "question"'),
        (b'{"question": "a?"}\nand a line of text\n', "line 2: not JSON"),
        (b'{"question": " "}\n', "no object with text"),
        (b'{"question": "a", "id": 1}\n{"question": "b", "id": "1"}\n', "line 2: the id '1' is used twice"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_questions_that_are_none_are_named_by_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        document_qa.read_questions(path)


def test_the_command_answers_cites_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny.save(tmp_path / "model", num_hidden_layers=2)
    text = " ".join(["The street was quiet."] * 60 + ["Tobin keeps the kettle."] + ["The river was low."] * 60)
    Path("a.txt").write_text(text)
    Path("ask.jsonl").write_text('{"question": "Where is the kettle?", "id": "kettle"}\n')
    Path("fast.toml").write_text('calibration = "none"\nencoder = "none"\nsegment_tokens = 64\nselector = "bm25"\n')
    words = ["ask", "a.txt", "--questions", "ask.jsonl", "--out", "rows.jsonl", "--model", str(model)]
    words += ["--config", "fast.toml", "--budget", "160", "--max-new-tokens", "3", "--json"]
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout) == {"rows": 1, "skipped": 0, "failed": 0, "out": "rows.jsonl"}
    (row,) = rows(Path("rows.jsonl"))
    assert row["id"] == "kettle" and "kettle" in row["selection"]["text"] and row["configuration"]["budget"] == 160
    for span in row["citations"]:
        assert text[span["start"] : span["end"]] == span["quote"]
    assert json.loads(CliRunner().invoke(app, words).stdout)["skipped"] == 1
    changed = CliRunner().invoke(app, [*words, "--budget", "170"])
    assert changed.exit_code == 4 and "budget was 160 and is 170" in changed.stderr
    same = CliRunner().invoke(app, [word.replace("rows.jsonl", "ask.jsonl") for word in words])
    assert same.exit_code == 2 and "one of the files to read" in same.stderr
