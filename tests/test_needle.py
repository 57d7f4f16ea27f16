"""``longctx needle`` with a tiny model: rows, recipes, interruptions, refusals, the forecast and what is written."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_encoder import tiny as tiny_encoder
from test_endpoint import GOOD, Server
from typer.testing import CliRunner

from longctx import Document, Reader
from longctx.cli import app
from longctx.commands import forecast
from longctx.errors import ArtifactError, BadOption, DoesNotFit, EndpointError, UsageError
from longctx.pipelines import needle, needle_grid, needle_report, needle_results
from longctx.pipelines.haystack import Haystack, counter, digest, sources
from longctx.pipelines.needle_systems import Books, Plain, Said, Selecting, turn
from longctx.pipelines.rows import Row, read

pytestmark = pytest.mark.usefixtures("one_thread")

TIMES = {"seconds", "date", "tokens_read"}


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(
        tiny.model(num_hidden_layers=2), tiny.tokenizer("system"), encoder=None, calibration=None, segment_tokens=128
    )


@dataclass(frozen=True)
class Oracle:
    """Says the sentence that holds the last words of the question, after ``limit`` answers nothing more."""

    name: str = "oracle"
    says: Callable[[str, str], str] = lambda text, question: text
    settings = {"max_new_tokens": 8}

    def answer(self, document: Document, question: str) -> Said:
        return Said(self.says(document.text, question), ((0, len(document.text)),))


def grid(**changes: Any) -> needle_grid.Grid:
    return needle_grid.Grid(**{"tasks": ("number",), "lengths": (600,), "depths": 3, **changes})


def made(
    reader: Reader, out: Path, asked: needle_grid.Grid, systems: Sequence[Any], haystack: Sequence[Path] = ()
) -> list[Row]:
    out.mkdir(exist_ok=True)
    count = counter(reader.tokenizer)
    common = needle.made_with(asked, "tiny", "abc", ["python"], None)
    rows = needle.rows_of(out, systems, common)
    needle.run(asked, systems, Haystack(sources(haystack), count), count, rows, common, {"machine": "m"})
    return read(out / needle.ROWS)


def selecting(reader: Reader, selector: str = "bm25", budget: int = 150, **more: Any) -> Selecting:
    return Selecting(Books(reader), selector, budget, 4, {"splitter": "auto"}, **more)


class Recording(Reader):
    """Writes down what its model is given."""

    asked: list[str]

    def prompt(self, text: str, question: str) -> list[int]:
        self.asked.append(turn(text, question))
        return super().prompt(text, question)


def recording(window: int = 4096) -> Recording:
    made = Recording(
        tiny.model(num_hidden_layers=2, max_position_embeddings=window),
        tiny.tokenizer("system"),
        encoder=None,
        calibration=None,
        segment_tokens=128,
    )
    made.asked = []
    return made


def of_before(row: Row) -> Row:
    """The row as it was when rows held the selection's spans in place of those that were given."""
    new = ("asked", "held", "between", "given_sha256")
    made = {name: value for name, value in row["made_with"].items() if name not in ("kept", "kv")}
    return {**{name: value for name, value in row.items() if name not in new}, "made_with": made}


def timeless(rows: Sequence[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def test_what_was_kept_and_what_was_said_are_told_apart(reader: Reader, tmp_path: Path) -> None:
    rows = made(reader, tmp_path, grid(), [selecting(reader), selecting(reader, "head")])
    assert [row["system"] for row in rows] == ["bm25", "head"] * 3
    assert [row["kept"] for row in rows if row["system"] == "bm25"] == [1.0, 1.0, 1.0]
    # the head keeps the first units and so the first needle alone
    assert [row["kept"] for row in rows if row["system"] == "head"] == [1.0, 0.0, 0.0]
    assert {row["said"] for row in rows} == {0.0}  # a random model
    assert all(row["facts"]["selected_tokens"] <= 150 for row in rows)
    assert all(400 <= row["document_tokens"] <= 600 for row in rows)
    for row in rows:
        start, end = row["evidence"][0]
        assert row["kept"] == float(any(a <= start and end <= b for a, b in row["read"]))


def test_a_reader_of_everything_says_everything(reader: Reader, tmp_path: Path) -> None:
    tasks = ("number", "multivalue", "tracking", "common_words", "passkey")
    rows = made(reader, tmp_path, grid(tasks=tasks), [Oracle()])
    assert [row["said"] for row in rows] == [1.0] * 13  # three depths each, and common words once
    assert {row["kept"] for row in rows if row["task"] != "common_words"} == {1.0}
    assert {row["kept"] for row in rows if row["task"] == "common_words"} == {None}
    nothing = made(reader, tmp_path / "no", grid(), [Oracle(says=lambda text, question: question)])
    assert [row["said"] for row in nothing] == [0.0] * 3


def test_every_prompt_is_made_again_from_its_row(reader: Reader, tmp_path: Path) -> None:
    asked: list[str] = []

    def keep(text: str, question: str) -> str:
        asked.append(turn(text, question))
        return ""

    made(reader, tmp_path, grid(tasks=("multikey", "needles_only", "common_words"), seeds=(0, 1)), [Oracle(says=keep)])
    assert len(asked) == 14
    assert [needle.rebuild(tmp_path / needle.ROWS, number, []) for number in range(1, 15)] == asked


def test_a_row_holds_what_its_model_was_given_and_the_prompt_is_made_again(tmp_path: Path) -> None:
    asked = recording()
    systems = [
        Plain(asked, "full", 4),
        *(selecting(asked, selector, 400) for selector in ("auto", "bm25", "xl3m", "all")),
        selecting(asked, "auto", 400, kv="lm_infinite:budget=60"),
        selecting(asked, "all", kv="lm_infinite:budget=100"),
    ]
    rows = made(asked, tmp_path, grid(tasks=("number", "multikey"), together=True), systems)
    path = tmp_path / needle.ROWS
    assert [needle.given(path, number, []) for number in range(1, len(rows) + 1)] == [(it, ()) for it in asked.asked]
    assert [row["given_sha256"] for row in rows] == list(map(digest, asked.asked)) and len(rows) == 42
    wholes = [needle.rebuild(path, number, []) for number in range(1, len(rows) + 1)]
    assert [row["recipe"]["prompt_sha256"] for row in rows] == list(map(digest, wholes))
    left_out = moved = 0
    for row, whole in zip(rows, wholes, strict=True):
        text = whole.removeprefix(turn("", "").partition("\n\nQuestion")[0])
        text = text.removesuffix(f"\n\nQuestion: {row['question']}")
        assert row["asked"] is True
        if row["system"] in ("auto", "xl3m", "bm25"):
            found = asked.select(
                Document.from_text(text, "t"), row["question"], budget_tokens=400, selector=row["system"]
            )
            assert row["read"] == [[span.start, span.end] for span in found.as_read]
            left_out += len(found.as_read) < len(found.spans)
            moved += row["read"] != sorted(row["read"])
        elif row["system"].startswith("auto"):  # a bounded cache reads everything in the order of the text
            assert row["read"] == sorted(row["read"])
        else:
            assert row["read"] == [[0, len(text)]] and row["kept"] == 1.0
    assert left_out and moved, "spans below the floor are not given, and the strongest stands last"


def test_what_passes_the_window_was_given_in_part_or_not_at_all(tmp_path: Path) -> None:
    asked = recording(700)
    systems = [Plain(asked, "full", 4), Plain(asked, "truncated", 4), selecting(asked, "all")]
    systems.append(selecting(asked, "all", kv="lm_infinite:budget=300"))
    rows = made(asked, tmp_path, grid(lengths=(900,), depths=1), systems)
    prompts, said = zip(*(needle.given(tmp_path / needle.ROWS, number, []) for number in range(1, 5)), strict=True)
    assert list(prompts) == [None, asked.asked[1], None, asked.asked[2]] and len(asked.asked) == 3
    assert ["window" in " ".join(words) for words in said] == [True, False, True, False]
    assert [row["asked"] for row in rows] == [False, True, False, True]
    assert rows[1]["read"][0][0] == 0 and len(rows[1]["read"]) == 2 and rows[1]["held"] is None
    assert len(prompts[1]) < len(prompts[3])


def test_a_model_that_was_not_asked_was_given_nothing(tmp_path: Path) -> None:
    class Elsewhere(Selecting):
        def answer(self, document: Document, question: str) -> Said:
            return Selecting.answer(self, document, "qqqq wwww xxxx zzzz")

    asked = recording()
    rows = made(asked, tmp_path, grid(depths=1), [Elsewhere(Books(asked), "auto:model=false", 150, 4, {})])
    assert asked.asked == [] and "nothing in the text" in " ".join(rows[0]["warnings"])
    assert (rows[0]["asked"], rows[0]["read"], rows[0]["kept"], rows[0]["given_sha256"]) == (False, [], 0.0, None)
    prompt, (said,) = needle.given(tmp_path / needle.ROWS, 1, [])
    assert prompt is None and "not asked" in said and "--whole" in said
    assert rows[0]["question"] in needle.rebuild(tmp_path / needle.ROWS, 1, [])


def test_what_a_selection_held_and_what_the_model_was_given_are_told_apart(reader: Reader, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Halves(Oracle):
        def answer(self, document: Document, question: str) -> Said:
            half = len(document.text) // 2
            return Said("", ((0, half),), between="\n\n", selected=((0, half), (half, len(document.text))))

    rows = made(reader, tmp_path, grid(depths=2), [Halves()])
    assert [(row["kept"], row["held"]) for row in rows] == [(1.0, 1.0), (0.0, 1.0)]
    (line,) = needle_report.summary(rows)
    assert line.kept == 0.5


def test_spans_and_hash_of_what_was_given_are_checked(reader: Reader, tmp_path: Path) -> None:
    (row, *_) = made(reader, tmp_path, grid(), [selecting(reader)])
    path = tmp_path / needle.ROWS
    row["read"][0][1] -= 3
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ArtifactError, match="damaged"):
        needle.given(path, 1, [])
    assert needle.rebuild(path, 1, [])
    del row["read"]
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ArtifactError, match="has no 'read'"):
        needle.given(path, 1, [])


def test_rows_of_before_make_their_whole_text_and_say_so_and_no_run_adds_to_them(
    reader: Reader, tmp_path: Path
) -> None:
    systems = [Plain(reader, "full", 4), selecting(reader), selecting(reader, "all")]
    rows = [of_before(row) for row in made(reader, tmp_path, grid(depths=1), systems)]
    path = tmp_path / needle.ROWS
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    packed = tmp_path / "needle-of-before.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for held in (path, packed):
        assert needle.given(held, 1, []) == (needle.rebuild(held, 1, []), ()), "it was given the whole text"
        prompt, (said,) = needle.given(held, 2, [])
        assert prompt == needle.rebuild(held, 2, []) and "whole text" in said and "'bm25'" in said
        assert digest(prompt) == rows[1]["recipe"]["prompt_sha256"]
        assert needle.given(held, 3, [])[1], "a reader takes line ends off the text"
    with pytest.raises(ArtifactError, match="kept was None"):
        made(reader, tmp_path, grid(depths=1), systems)
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match="cannot be unpacked"):
        needle.given(packed, 1, [])


def test_published_rows_say_what_kept_means_in_them(reader: Reader, tmp_path: Path) -> None:
    rows = made(reader, tmp_path, grid(depths=1), [selecting(reader)])
    for number, (named, own) in enumerate(
        (("by the selection", [of_before(row) for row in rows]), ("in what was", rows))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        lines = "".join(f"{json.dumps(row)}\n" for row in own)
        (folder / "needle-x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        assert f"kept {named}" in needle_results.part(folder) and f"kept {named}" in needle_report.kept_label(own)
    pictures = [
        needle_results.pictures(tmp_path / str(number), tmp_path)[tmp_path / "needle-x.png"] for number in (0, 1)
    ]
    assert pictures[0] != pictures[1]


# Bounded caches and drafters


def test_a_selector_with_another_policy_is_another_system(reader: Reader, tmp_path: Path) -> None:
    policies = (None, "lm_infinite:budget=100", "lm_infinite:budget=200")
    alone = {}
    for number, kv in enumerate(policies, 1):
        rows = made(reader, tmp_path, grid(), [selecting(reader, "all", kv=kv)])
        assert len(rows) == 3 * number
        (alone[kv],) = {row["system"] for row in rows if row["made_with"]["kv"] == kv}
    assert list(alone.values()) == ["all", *(f"all --kv {kv}" for kv in policies[1:])]
    systems = [selecting(reader, "all", kv=kv) for kv in policies]
    before = (tmp_path / needle.ROWS).read_bytes()
    assert timeless(made(reader, tmp_path / "whole", grid(), systems)) == timeless(
        made(reader, tmp_path, grid(), systems)
    )
    assert sorted(before.splitlines()) == sorted((tmp_path / needle.ROWS).read_bytes().splitlines()), (
        "nothing made twice"
    )
    assert {line.system for line in needle_report.summary(read(tmp_path / needle.ROWS))} == set(alone.values())


def test_a_row_of_a_bounded_cache_says_what_asking_through_it_says(reader: Reader, tmp_path: Path) -> None:
    kv = "squeezed:budget=200"
    rows = made(reader, tmp_path, grid(depths=2, together=True), [selecting(reader, "all", kv=kv)])
    for row, number in zip(rows, (1, 2), strict=True):
        prompt = needle.rebuild(tmp_path / needle.ROWS, number, [])
        text = prompt.partition("Text:\n")[2].removesuffix(f"\n\nQuestion: {row['question']}")
        said = reader.ask(Document.from_text(text), row["question"], selector="all", max_new_tokens=4, kv=kv)
        (decoded,) = (step.facts for step in said.trace if step.name == "decode")
        assert (row["answer"], row["facts"]["kv"]) == (said.text, decoded["kv"])
        assert row["facts"]["kv"]["read_keys"] <= 200 < row["facts"]["kv"]["context_tokens"]
        assert row["made_with"]["budget"] is None, "all has none"


def test_drafters_stand_in_the_row_and_tell_no_rows_apart(reader: Reader, tmp_path: Path) -> None:
    plain = made(reader, tmp_path, grid(depths=2), [selecting(reader, drafters=[])])
    again = made(reader, tmp_path, grid(depths=2), [selecting(reader, drafters=["document", "ngram"])])
    assert again == plain and {json.dumps(row["facts"]["drafters"]) for row in plain} == {"[]"}
    drafted = made(reader, tmp_path / "other", grid(depths=2), [selecting(reader, drafters=["document", "ngram"])])
    assert [row["answer"] for row in drafted] == [row["answer"] for row in plain]
    assert drafted[0]["facts"]["drafters"] == ["document", "ngram"] and drafted[0]["made_with"] == plain[0]["made_with"]
    bounded = selecting(reader, "all", kv="lm_infinite:budget=100", drafters=["ngram"])
    (row,) = made(reader, tmp_path / "kv", grid(depths=1), [bounded])
    assert "without drafts" in " ".join(row["warnings"]), "a bounded cache verifies none, and says so of those named"


def test_a_prompt_that_a_policy_cannot_bound_has_no_answer_and_does_not_end_the_run(
    reader: Reader, tmp_path: Path
) -> None:
    systems = [selecting(reader, "all", kv="lm_infinite:budget=5"), selecting(reader)]
    rows = made(reader, tmp_path, grid(depths=2), systems)
    assert [(row.get("error") or {}).get("kind") for row in rows] == ["BadOption", None] * 2
    lines = {line.system: line for line in needle_report.summary(rows)}
    bounded = lines["all --kv lm_infinite:budget=5"]
    assert (bounded.rows, bounded.refused, bounded.unanswered, bounded.said) == (2, 0, 2, None)
    assert needle.given(tmp_path / needle.ROWS, 1, [])[0] is None
    with pytest.raises(BadOption, match="budget_tokens=0"):
        made(reader, tmp_path / "no", grid(), [Selecting(Books(reader), "bm25", 0, 4, {})])


def test_a_row_that_was_changed_or_another_haystack_is_refused(reader: Reader, tmp_path: Path) -> None:
    hay = tmp_path / "hay.txt"
    hay.write_text(" ".join(f"In week {i} the market was quiet." for i in range(400)))
    (row, *_) = made(reader, tmp_path, grid(), [Oracle()], [hay])
    path = tmp_path / needle.ROWS
    assert digest(needle.rebuild(path, 1, [hay])) == row["recipe"]["prompt_sha256"]
    with pytest.raises(ArtifactError, match="another haystack"):
        needle.rebuild(path, 1, [])
    row["recipe"]["inserted"][0][0] += 1
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ArtifactError, match="damaged"):
        needle.rebuild(path, 1, [hay])
    with pytest.raises(UsageError, match="no row 2"):
        needle.rebuild(path, 2, [hay])
    del row["recipe"]
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ArtifactError, match="recipe"):
        needle.rebuild(path, 1, [hay])


def test_an_interrupted_run_that_goes_on_equals_one_that_was_not(reader: Reader, tmp_path: Path) -> None:
    asked = grid(seeds=(0, 1), tasks=("number", "passkey"))
    whole = made(reader, tmp_path / "whole", asked, [selecting(reader)])
    left = iter(range(5))

    def stop(text: str, question: str) -> str:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return ""

    with pytest.raises(KeyboardInterrupt):
        made(reader, tmp_path / "parts", asked, [selecting(reader), Oracle(says=stop)])
    path = tmp_path / "parts" / needle.ROWS
    path.write_bytes(path.read_bytes()[:-30])
    again = made(reader, tmp_path / "parts", asked, [selecting(reader)])
    assert timeless([row for row in again if row["system"] == "bm25"]) == timeless(whole)
    assert again[0]["tokens_read"] >= 0 and not [name for name in again[0]["facts"] if "tokens_read" in name]
    assert made(reader, tmp_path / "whole", asked, [selecting(reader)]) == whole, "nothing is made twice"


def test_rows_that_are_made_again_stand_where_they_would_have_stood(reader: Reader, tmp_path: Path) -> None:
    hours = iter([False, True, True, False, True])

    def sometimes(text: str, question: str) -> str:
        if not next(hours):
            raise EndpointError("no answer", 3)
        return text

    asked = grid(tasks=("number", "passkey"), seeds=(0,))
    whole = made(reader, tmp_path / "whole", asked, [Oracle(), Oracle(name="server")])
    made(reader, tmp_path / "parts", grid(tasks=("number",)), [Oracle(name="server", says=sometimes)])
    again = made(reader, tmp_path / "parts", asked, [Oracle(), Oracle(name="server")])
    assert timeless(again) == timeless(whole)
    assert [needle.rebuild(tmp_path / "parts" / needle.ROWS, number, []) for number in (1, 12)]


def test_rows_of_other_versions_of_the_libraries_are_refused(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(reader, tmp_path, grid(), [Oracle()])
    monkeypatch.setattr(needle, "version", lambda name: "0.0")
    with pytest.raises(ArtifactError, match="transformers was '[^']*' and is '0.0'"):
        made(reader, tmp_path, grid(), [Oracle()])


def test_rows_of_other_settings_are_refused_with_the_difference(reader: Reader, tmp_path: Path) -> None:
    made(reader, tmp_path, grid(), [selecting(reader)])
    before = (tmp_path / needle.ROWS).read_bytes()
    with pytest.raises(ArtifactError, match="depths was 3 and is 5"):
        made(reader, tmp_path, grid(depths=5), [selecting(reader)])
    with pytest.raises(ArtifactError, match="budget was 150 and is 99"):
        made(reader, tmp_path, grid(), [Selecting(Books(reader), "bm25", 99, 4, {"splitter": "auto"})])
    assert (tmp_path / needle.ROWS).read_bytes() == before
    made(
        reader, tmp_path, grid(lengths=(600, 900), tasks=("number", "uuid")), [Oracle()]
    )  # more of the same is welcome


def test_facts_are_the_same_together_and_alone(reader: Reader, tmp_path: Path) -> None:
    alone = made(reader, tmp_path / "alone", grid(tasks=("multikey",)), [Oracle()])
    together = made(reader, tmp_path / "together", grid(tasks=("multikey",), together=True), [Oracle()])
    for one, other in zip(alone, together, strict=True):
        assert (one["question"], one["answers"], one["depth"]) == (other["question"], other["answers"], other["depth"])
    # 15 other keys beside each fact: planted ones, or planted ones and the other facts
    assert {len(row["recipe"]["inserted"]) for row in [*alone, *together]} == {16}
    assert len({row["recipe"]["haystack_sha256"] for row in together}) == 1
    assert len({json.dumps(row["recipe"]["inserted"]) for row in together}) == 1
    apart = made(reader, tmp_path / "key", grid(tasks=("passkey",), together=True), [Oracle()])
    assert {len(row["recipe"]["inserted"]) for row in apart} == {1}, "a text has one pass key"


def test_a_distractor_of_several_sentences_is_planted_whole(reader: Reader, tmp_path: Path) -> None:
    rows = made(reader, tmp_path, grid(tasks=("tracking:hops=2",), distractors=2, together=True), [Oracle()])
    # three facts are distractors to one another, so that none need be planted
    assert {len(row["recipe"]["inserted"]) for row in rows} == {9}
    rows = made(reader, tmp_path / "alone", grid(tasks=("tracking:hops=2",), distractors=2), [Oracle()])
    assert {len(row["recipe"]["inserted"]) for row in rows} == {9}
    said = " ".join(string for _, string in rows[0]["recipe"]["inserted"])
    assert len(re.findall(r"gets the value \d", said)) == 3 and len(re.findall("of variable", said)) == 6


def test_facts_whose_keys_stand_in_the_haystack_are_drawn_anew_and_the_row_says_so(
    reader: Reader, tmp_path: Path
) -> None:
    (first, *_) = made(reader, tmp_path / "a", grid(), [Oracle()])
    hay = tmp_path / "hay.txt"
    name = re.search("number of (.*)[?]", first["question"])
    assert name is not None
    hay.write_text(f"Once there was {name[1]}. " + " ".join(f"In week {i} it rained." for i in range(400)))
    (row, *_) = made(reader, tmp_path / "b", grid(), [Oracle()], [hay])
    assert (first["recipe"]["draws"], row["recipe"]["draws"]) == (1, 2)
    assert name[1] not in row["question"]


def test_words_are_counted_in_the_text_that_was_made(reader: Reader, tmp_path: Path) -> None:
    texts: list[str] = []

    def keep(text: str, question: str) -> str:
        texts.append(text)
        return ""

    asked = grid(tasks=("frequent_words",), seeds=tuple(range(12)))
    rows = made(reader, tmp_path, asked, [Oracle(says=keep)])
    for row, text in zip(rows, texts, strict=True):
        (*top, beyond) = Counter(re.findall("[a-z]+", text)).most_common(4)
        assert set(row["answers"]) == {word for word, _ in top} and top[-1][1] > beyond[1]
    assert [needle.rebuild(tmp_path / needle.ROWS, number, []) for number in range(1, 13)]
    assert any(row["recipe"]["draws"] > 1 for row in rows), "a text without a single answer is drawn anew"
    with pytest.raises(UsageError, match="had a single answer"):
        made(reader, tmp_path, grid(tasks=("common_words:words=2",), lengths=(90,)), [Oracle()])


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


def test_prompts_that_a_server_refuses_do_not_end_the_run_and_are_asked_again_later(
    reader: Reader, tmp_path: Path
) -> None:
    def refused(text: str, question: str) -> str:
        raise EndpointError("the server answered 413.", 0, refused=True)

    rows = made(reader, tmp_path, grid(depths=5), [Oracle(says=refused)])
    assert [row["said"] for row in rows] == [None] * 5
    assert [row["said"] for row in made(reader, tmp_path, grid(depths=5), [Oracle()])] == [1.0] * 5


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_backward_thread_stands_backward_at_every_depth(reader: Reader, tmp_path: Path, depth: int) -> None:
    for task, sign in (("thread:direction=backward", -1), ("thread", 1), ("threads:threads=2,direction=backward", -1)):
        row = made(reader, tmp_path / task[:9], grid(tasks=(task,)), [Oracle()])[depth]
        handed = [
            re.search(r"(\w+ \w+) handed the parcel to (.*)[.]", string) for _, string in row["recipe"]["inserted"]
        ]
        taken = [(at[1], at[2]) for at in handed if at is not None]
        for (giver, taker), later in itertools.combinations(taken, 2):
            assert taker != later[0] if sign < 0 else giver != later[1], (task, taken)


def test_a_length_that_plain_generation_refuses_is_a_row_with_the_reason(reader: Reader, tmp_path: Path) -> None:
    hay = tmp_path / "hay.txt"
    hay.write_text(" ".join(f"In week {i} the market was quiet." for i in range(900)))
    rows = made(reader, tmp_path, grid(lengths=(4200,), depths=1), [Plain(reader, "full", 4)], [hay])
    assert rows[0]["error"]["kind"] == "DoesNotFit" and rows[0]["kept"] is None and not rows[0].get("again")
    (line,) = needle_report.summary(rows)
    assert (line.rows, line.refused, line.unanswered, line.kept, line.said_interval) == (1, 1, 0, None, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ("number", "number")}, "--task"),
        ({"lengths": ()}, "--lengths"),
        ({"depths": 0}, "--depths 0 and --lengths"),
        ({"lengths": (500, 0)}, "--lengths 500,0 must be at least 1"),
        ({"distractors": -2}, "--distractors -2 not negative"),
        ({"tasks": ("nonsense",)}, "no needle named"),
        ({"tasks": ("latent",), "distractors": 3}, "no distractors"),
    ],
)
def test_grids_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        grid(**changes)


def test_depths_reach_from_one_end_to_the_other() -> None:
    assert grid(depths=1).shares == [0.5]
    assert grid(depths=5).shares == [0.0, 0.25, 0.5, 0.75, 1.0]


# What is written


@pytest.fixture
def rows(reader: Reader, tmp_path: Path) -> list[Row]:
    nasty = Oracle(name="<b>loud</b>", says=lambda text, question: f"<script>alert(1)</script> {text[:9000]}")
    return made(reader, tmp_path, grid(tasks=("number", "common_words"), lengths=(600, 900)), [nasty])


def test_the_summary_is_the_mean_of_the_rows(rows: list[Row]) -> None:
    lines = needle_report.summary(rows)
    assert [(line.task, line.length, line.rows) for line in lines] == [
        ("number", 600, 3), ("common_words", 600, 1), ("number", 900, 3), ("common_words", 900, 1)
    ]  # fmt: skip
    assert (lines[0].kept, lines[0].said) == (1.0, 1.0)
    assert lines[0].kept_interval == pytest.approx((0.4385, 1.0), abs=1e-4)  # Wilson, 3 of 3
    assert lines[1].kept is None


def test_means_tell_over_how_many_answers_they_are(reader: Reader, tmp_path: Path) -> None:
    hours = iter([True, False, False, True, False])

    def sometimes(text: str, question: str) -> str:
        if not next(hours):
            raise EndpointError("no answer", 3)
        return text

    rows = made(reader, tmp_path, grid(depths=5), [Oracle(says=sometimes)])
    (line,) = needle_report.summary(rows)
    assert (line.rows, line.refused, line.unanswered, line.answered, line.said) == (5, 0, 3, 2, 1.0)
    assert line.cells[-1] == "100 % [34, 100] of 2"
    assert "100 % [34, 100] of 2" in needle_report.write(tmp_path, rows).files["html"].read_text(encoding="utf-8")


def test_files_hold_every_row_and_the_page_fetches_nothing_and_runs_nothing(rows: list[Row], tmp_path: Path) -> None:
    written = needle_report.write(tmp_path, rows)
    listed = list(csv.DictReader(written.files["csv"].read_text(encoding="utf-8").splitlines()))
    assert [row["question"] for row in listed] == [row["question"] for row in rows]
    assert written.files["png"].read_bytes().startswith(b"\x89PNG")
    page = written.files["html"].read_text(encoding="utf-8")
    assert "<script" not in page and "<b>loud" not in page and "&lt;b&gt;loud" in page
    assert re.findall(r"(?:src|href)=.{6}", page) == ["src='data:"]
    for row in rows:
        assert row["question"] in page
    png = written.files["png"].read_bytes()
    needle_report.write(tmp_path, rows)
    assert written.files["png"].read_bytes() == png, "the same rows make the same picture"


def test_cells_are_means_over_seeds_and_empty_where_nothing_was_measured() -> None:
    def row(seed: int, depth: float, kept: float | None, said: float | None) -> Row:
        return {"depth": depth, "length": 9, "seed": seed, "kept": kept, "said": said}

    cells = needle_report.grid([row(0, 1.0, 1.0, 0.5), row(1, 1.0, 0.0, 1.0), row(0, 0.0, None, 0.0)], [9, 10])
    assert cells.depths == (0.0, 1.0)
    assert cells.cells == {"kept": [[None, None], [0.5, None]], "said": [[0.0, None], [0.75, None]]}


# The command


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
        f"all --kv {kv}": "none", f"bm25 --kv {kv}": "none", "all": ["document", "ngram"], "bm25": ["document", "ngram"]
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
