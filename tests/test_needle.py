"""``longctx needle`` with a tiny model: rows, the texts and grids they are of, interruptions and refusals."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from needle_runs import Oracle, grid, made, selecting, timeless, tiny_reader

from longctx import Document, Reader
from longctx.errors import ArtifactError, BadOption, EndpointError, UsageError
from longctx.pipelines import needle, needle_report
from longctx.pipelines.needle_systems import Books, Selecting
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
