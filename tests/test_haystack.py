"""Haystacks: pieces that tile the text, lengths that hold, needles in their places, and the way back from a recipe."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from longctx.errors import UsageError
from longctx.pipelines.haystack import (
    Haystack,
    beginning,
    contents,
    counter,
    cut,
    files,
    plant,
    rebuilt,
    sources,
    tokens_of,
)  # fmt: skip
from longctx.pipelines.needles._nouns import Needle

PROSE = "The rain had not stopped. Roads were slow! Was anybody there?\n\nA second paragraph, “quoted.” Then the end."


def words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


@given(st.text(alphabet="aB .!?\n\"'é。(", max_size=80))
def test_pieces_tile_the_text(text: str) -> None:
    assert "".join(cut(text)) == text


def test_pieces_end_where_sentences_and_paragraphs_do_and_not_after_abbreviated_numbers() -> None:
    assert cut(PROSE) == [
        "The rain had not stopped. ",
        "Roads were slow! ",
        "Was anybody there?\n\n",
        "A second paragraph, “quoted.” ",
        "Then the end.",
    ]
    assert cut("Version 3.11 is e.g. this one.") == ["Version 3.11 is e.g. this one."]
    assert cut("雨が降った。道は遅い。") == ["雨が降った。", "道は遅い。"]


@pytest.mark.parametrize("inside", ["Mr. Darcy", "U.S. Army", "J. R. Tolkien", "5 p.m. Monday", "e.g. Python"])
def test_no_piece_ends_inside_a_name_or_an_abbreviation(inside: str) -> None:
    assert cut(inside) == [inside]
    assert cut(f"We saw {inside} there. It rained.") == [f"We saw {inside} there. ", "It rained."]


def test_a_long_text_without_sentences_is_cut_at_lines_else_at_spaces_else_anywhere() -> None:
    lines, spaced, solid = "a b c d\n" * 1000, "word " * 1000, "x" * 5000
    for text, end in ((lines, "\n"), (spaced, " "), (solid, "x")):
        pieces = cut(text)
        assert "".join(pieces) == text and max(map(len, pieces)) <= 1000 and len(pieces) < 12
        assert all(piece.endswith(end) for piece in pieces)


@given(
    st.lists(
        st.tuples(st.sampled_from(["One two. ", "Three\n\n", "Four five six! "]), st.none()), min_size=1, max_size=40
    ),
    st.lists(st.floats(0, 1), max_size=5),
)
def test_planting_keeps_the_length_the_places_and_the_way_back(
    made: list[tuple[str, None]], places: list[float]
) -> None:
    pieces = [piece for piece, _ in made]
    needles = [Needle(f"Needle {i}.", place) for i, place in enumerate(places)]
    room = sum(words(pieces)) + 2 * len(needles)
    hay = Haystack(iter([pieces]), words)
    planted = plant(hay.take, needles, room, words)
    assert planted.tokens == tokens_of(planted.text, words) <= room
    assert rebuilt("".join(pieces), planted.inserted) == planted.text
    assert [planted.text[a:b] for a, b in planted.spans] == [needle.text for needle in needles]
    ends = [0, *accumulate(words(pieces))]
    for needle, depth in zip(needles, planted.depths, strict=True):
        best = min(abs(end - needle.place * ends[-1]) for end in ends)
        assert abs(depth * ends[-1] - needle.place * ends[-1]) == pytest.approx(best)
    order = sorted(range(len(needles)), key=lambda i: needles[i].place)
    assert [planted.spans[i][0] for i in order] == sorted(span[0] for span in planted.spans)


def test_a_needle_stands_between_two_sentences_with_their_white_space() -> None:
    hay = Haystack(iter([["One two. ", "Three.\n\n", "Four."]]), words)
    planted = plant(hay.take, [Needle("Here.", 0.7), Needle("First.", 0.0), Needle("Last.", 1.0)], 7, words)
    assert planted.text == "First. One two. Three.\n\nHere.\n\nFour. Last. "


def test_a_needle_in_a_script_without_spaces_gets_its_own() -> None:
    planted = plant(Haystack(iter([["雨が降った。", "道は遅い。"]]), words).take, [Needle("Here.", 0.5)], 3, words)
    assert planted.text == "雨が降った。 Here. 道は遅い。"
    assert [planted.text[a:b] for a, b in planted.spans] == ["Here."]


def test_lengths_are_exact_in_the_tokens_of_the_model() -> None:
    tokenizer = tiny.tokenizer("system")
    count = counter(tokenizer)
    hay = Haystack(sources([]), count)
    for length in (300, 1000, 2500):
        planted = plant(hay.take, [Needle("The key is 4711.", 0.5)], length, count)
        real = len(tokenizer(planted.text, add_special_tokens=False)["input_ids"])
        assert length - max(80, length // 20) <= real <= length
        assert abs(planted.tokens - real) <= 2


def test_a_piece_that_is_longer_than_the_room_left_fills_it() -> None:
    pieces = ["One two. ", "word " * 600, "x" * 900, " End."]
    for length in (300, 400, 500):
        planted = plant(Haystack(iter([pieces]), words).take, [Needle("Here.", 0.5)], length, words)
        assert length - 64 <= planted.tokens <= length
        assert rebuilt("".join(pieces)[: planted.chars], planted.inserted) == planted.text
    letters = plant(
        Haystack(iter([["x" * 900]]), lambda texts: [*map(len, texts)]).take, [], 300, lambda t: [*map(len, t)]
    )
    assert letters.text == "x" * 300


def test_needles_of_one_place_keep_their_order() -> None:
    needles = [Needle(f"Needle {i}.", 1.0) for i in range(3)]
    planted = plant(Haystack(iter([["One two. "] * 9]), words).take, needles, 24, words)
    assert planted.text.endswith("One two. Needle 0. Needle 1. Needle 2. ")


def test_special_tokens_spelled_out_count_as_text() -> None:
    assert counter(tiny.tokenizer("system"))(["<|im_start|>"])[0] > 1


def test_a_haystack_that_is_too_short_is_refused_and_never_repeated() -> None:
    hay = Haystack(iter([["One two. "] * 10]), words)
    with pytest.raises(UsageError, match="has 20 tokens of this model and 50 are asked for"):
        hay.take(50)
    assert hay.take(20) == (["One two. "] * 10, [2] * 10)
    assert hay.take(5) == (["One two. "] * 2, [2] * 2)
    with pytest.raises(UsageError, match="cannot hold"):
        plant(hay.take, [Needle("Far too long a needle for it.", 0.5)], 5, words)


def test_files_and_folders_are_read_in_order_without_hidden_ones(tmp_path: Path) -> None:
    (tmp_path / "b" / ".hidden").mkdir(parents=True)
    for name in ("b/2.txt", "b/1.txt", "b/.hidden/3.txt", "a.txt"):
        (tmp_path / name).write_text(f"Text of {name}.")
    found = files([tmp_path / "b", tmp_path / "a.txt"])
    assert [path.name for path in found] == ["1.txt", "2.txt", "a.txt"]
    text = "".join(piece for pieces in sources([tmp_path / "b", tmp_path / "a.txt"]) for piece in pieces)
    assert text == "Text of b/1.txt.\n\nText of b/2.txt.\n\nText of a.txt.\n\n"
    assert beginning(sources([tmp_path / "a.txt"]), 7) == "Text of"
    with pytest.raises(UsageError, match="another one"):
        beginning(sources([tmp_path / "a.txt"]), 700)
    named = [tmp_path / "b" / "2.txt", tmp_path / "b", tmp_path / "b" / ".." / "a.txt", tmp_path / "a.txt"]
    assert [path.name for path in files(named)] == ["2.txt", "1.txt", "a.txt"], "every file once"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="without files"):
        files([tmp_path / "empty"])


def test_the_hash_of_a_haystack_follows_names_contents_and_order(tmp_path: Path) -> None:
    a, b, other = (tmp_path / folder / name for folder, name in (("x", "a.txt"), ("x", "b.txt"), ("y", "a.txt")))
    for path, text in ((a, "One."), (b, "Two."), (other, "Three.")):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    hashes = [contents(paths) for paths in ([a, b], [b, a], [a], [other], [])]
    assert len(set(hashes)) == 5 and hashes[-1] is None
    other.write_text("One.")
    assert contents([other]) == contents([a]), "where a file lies does not matter"
    b.write_text("One.")
    assert contents([b]) != contents([a])
