"""``longctx needle`` with a tiny model: rows, recipes, interruptions and refusals."""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from needle_runs import Oracle, grid, made, of_before, recording, selecting, timeless, tiny_reader

from longctx import Document, Reader
from longctx.errors import ArtifactError, BadOption, EndpointError, UsageError
from longctx.pipelines import needle, needle_report, needle_results
from longctx.pipelines.haystack import digest
from longctx.pipelines.needle_systems import Books, Plain, Said, Selecting, turn
from longctx.pipelines.rows import read

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reader() -> Reader:
    return tiny_reader()


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
    (unasked,) = made(reader, tmp_path / "usual", grid(depths=1), [selecting(reader)])
    assert unasked["facts"]["drafters"] == "none", "drafts follow the clock"
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


@pytest.mark.parametrize("written", [str, str.upper, lambda name: name.replace(" ", "\n  ")])
def test_facts_whose_keys_stand_in_the_haystack_are_drawn_anew_and_the_row_says_so(
    reader: Reader, tmp_path: Path, written: Callable[[str], str]
) -> None:
    """However they are written there: what is said is scored whatever the case and the white space."""
    (first, *_) = made(reader, tmp_path / "a", grid(), [Oracle()])
    hay = tmp_path / "hay.txt"
    name = re.search("number of (.*)[?]", first["question"])
    assert name is not None
    hay.write_text(f"Once there was {written(name[1])}. " + " ".join(f"In week {i} it rained." for i in range(400)))
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
