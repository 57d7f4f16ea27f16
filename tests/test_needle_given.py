"""What the model behind a row of ``longctx needle`` was given, and its prompt made again from the row's recipe."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from needle_runs import Oracle, grid, made, of_before, recording, selecting, tiny_reader

from longctx import Document, Reader
from longctx.errors import ArtifactError, UsageError
from longctx.pipelines import needle, needle_report, needle_results
from longctx.pipelines.haystack import digest
from longctx.pipelines.needle_systems import Books, Plain, Said, Selecting, turn

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reader() -> Reader:
    return tiny_reader()


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
