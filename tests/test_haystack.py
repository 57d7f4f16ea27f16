"""Haystacks: pieces that tile the text, lengths that hold, needles in their places, and the way back from a recipe."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from longctx.errors import UsageError
from longctx.pipelines.haystack import Haystack, beginning, counter, cut, files, plant, rebuilt, sources, tokens_of
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
        assert length - 400 < real <= length
        assert abs(planted.tokens - real) <= 2


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
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="without files"):
        files([tmp_path / "empty"])
