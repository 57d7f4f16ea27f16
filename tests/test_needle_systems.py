"""What ``longctx needle`` asks: plain generation and servers, and what becomes of those that fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from needle_runs import Oracle, grid, made, tiny_reader

from longctx import Document, Reader
from longctx.errors import DoesNotFit, EndpointError
from longctx.pipelines import needle, needle_report
from longctx.pipelines.needle_systems import Plain, turn
from longctx.pipelines.rows import read

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reader() -> Reader:
    return tiny_reader()


def test_plain_generation_reads_all_or_both_ends_and_refuses_what_the_window_does_not_hold(reader: Reader) -> None:
    text = "".join(f"In week {i} the market was quiet. " for i in range(900))
    document, question = Document.from_text(text, "t"), "When was it quiet?"
    short = Document.from_text(text[:300], "s")
    assert Plain(reader, "full", 4).answer(short, question).read == ((0, 300),)
    with pytest.raises(DoesNotFit, match="window is 4,096"):
        Plain(reader, "full", 4).answer(document, question)
    said = Plain(reader, "truncated", 4).answer(document, question)
    assert said.read is not None
    (_, end), (start, last) = said.read
    assert 0 < end < start < last == len(text)
    assert reader.window - 8 <= said.facts["prompt_tokens"] + 4 <= reader.window


def test_plain_generation_says_what_reading_everything_says(reader: Reader) -> None:
    document = Document.from_text("The lamp of Odette stands in room 4711. It rained.", "t")
    plain = Plain(reader, "full", 6).answer(document, "Where is the lamp?")
    assert plain.text == reader.ask(document, "Where is the lamp?", selector="all", max_new_tokens=6).text


def test_plain_generation_is_greedy_whatever_the_models_own_settings_say(reader: Reader) -> None:
    document = Document.from_text("The lamp of Odette stands in room 4711. It rained.", "t")
    asked = Plain(reader, "full", 12)
    plain, settings = asked.answer(document, "Where is the lamp?").text, asked.settings
    own = reader.model.generation_config
    changes = {"repetition_penalty": 50.0, "no_repeat_ngram_size": 1, "suppress_tokens": list(range(40))}
    before = {name: getattr(own, name) for name in changes}
    try:
        for name, value in changes.items():
            setattr(own, name, value)
        assert asked.answer(document, "Where is the lamp?").text == plain
        assert asked.settings == settings and settings["decoding"]["do_sample"] is False
        assert reader.model.generation_config is own and own.repetition_penalty == 50.0
    finally:
        for name, value in before.items():
            setattr(own, name, value)


@pytest.mark.parametrize("template", ["system", "no_system", "base"])
def test_a_server_is_given_the_words_that_a_reader_gives_its_model(template: str) -> None:
    tokenizer = tiny.tokenizer(template)
    reader = Reader(tiny.model(num_hidden_layers=1), tokenizer, encoder=None, calibration=None)
    shown = tokenizer.decode(reader.prompt("It rained.", "Was it dry?"))
    assert turn("It rained.", "Was it dry?") in shown


def test_a_server_that_fails_marks_its_rows_ends_the_run_and_is_asked_again_later(
    reader: Reader, tmp_path: Path
) -> None:
    def gone(text: str, question: str) -> str:
        raise EndpointError("no answer", 3)

    with pytest.raises(EndpointError):
        made(reader, tmp_path, grid(depths=5), [Oracle(says=gone)])
    failed = read(tmp_path / needle.ROWS)
    assert len(failed) == 3 and {row["error"]["kind"] for row in failed} == {"EndpointError"}
    assert failed[0]["facts"] == {"retries": 3} and failed[0]["said"] is None
    rows = made(reader, tmp_path, grid(depths=5), [Oracle()])
    assert [row["said"] for row in rows] == [1.0] * 5


def test_a_server_that_is_gone_ends_the_run_whatever_other_systems_answer(reader: Reader, tmp_path: Path) -> None:
    def gone(text: str, question: str) -> str:
        raise EndpointError("no answer", 3)

    with pytest.raises(EndpointError):
        made(reader, tmp_path, grid(depths=5), [Oracle(), Oracle(name="server", says=gone)])
    assert [row["system"] for row in read(tmp_path / needle.ROWS)] == ["oracle", "server"] * 3


def test_a_server_that_answers_nobody_ends_the_run_at_once(reader: Reader, tmp_path: Path) -> None:
    def closed(text: str, question: str) -> str:
        raise EndpointError("the server answered 401.", 0, closed=True)

    with pytest.raises(EndpointError):
        made(reader, tmp_path, grid(depths=5), [Oracle(says=closed)])
    assert len(read(tmp_path / needle.ROWS)) == 1
    assert [row["said"] for row in made(reader, tmp_path, grid(depths=5), [Oracle()])] == [1.0] * 5


def test_a_short_run_without_any_answer_is_no_success(reader: Reader, tmp_path: Path) -> None:
    asked: list[int] = []

    def sometimes(text: str, question: str) -> str:
        asked.append(1)
        if len(asked) < 4:
            raise EndpointError("no answer", 3)
        return text

    with pytest.raises(EndpointError):
        made(reader, tmp_path, grid(depths=2), [Oracle(), Oracle(name="server", says=sometimes)])
    rows = read(tmp_path / needle.ROWS)
    assert [(row["system"], row["said"]) for row in rows] == [("oracle", 1.0), ("server", None)] * 2
    rows = made(reader, tmp_path, grid(depths=2), [Oracle(), Oracle(name="server", says=sometimes)])
    assert [row["said"] for row in rows if row["system"] == "server"] == [None, 1.0]  # one answer is enough


def test_prompts_that_a_server_refuses_do_not_end_the_run_and_are_asked_again_later(
    reader: Reader, tmp_path: Path
) -> None:
    def refused(text: str, question: str) -> str:
        raise EndpointError("the server answered 413.", 0, refused=True)

    rows = made(reader, tmp_path, grid(depths=5), [Oracle(says=refused)])
    assert [row["said"] for row in rows] == [None] * 5
    assert [row["said"] for row in made(reader, tmp_path, grid(depths=5), [Oracle()])] == [1.0] * 5


def test_a_length_that_plain_generation_refuses_is_a_row_with_the_reason(reader: Reader, tmp_path: Path) -> None:
    hay = tmp_path / "hay.txt"
    hay.write_text(" ".join(f"In week {i} the market was quiet." for i in range(900)))
    rows = made(reader, tmp_path, grid(lengths=(4200,), depths=1), [Plain(reader, "full", 4)], [hay])
    assert rows[0]["error"]["kind"] == "DoesNotFit" and rows[0]["kept"] is None and not rows[0].get("again")
    (line,) = needle_report.summary(rows)
    assert (line.rows, line.refused, line.unanswered, line.kept, line.said_interval) == (1, 1, 0, None, None)
