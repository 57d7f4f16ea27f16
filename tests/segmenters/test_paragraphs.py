"""Paragraphs: whole ones share a unit, long ones are cut between sentences."""

from __future__ import annotations

from splitting import by_words, pieces

from longctx.segmenters.splitters.paragraphs import Paragraphs

SENTENCE = "One two three four five six seven."  # 8 tokens


def test_short_paragraphs_share_a_unit_and_are_never_cut() -> None:
    paragraphs = [" ".join([SENTENCE] * 2) + "\n\n" for _ in range(9)]
    encoded = by_words("".join(paragraphs))
    found = pieces(encoded, Paragraphs(max_tokens=60).split(encoded))
    assert [piece.count(SENTENCE) for piece in found] == [6, 6, 6]


def test_a_long_paragraph_is_cut_between_sentences_and_stays_alone() -> None:
    short, long = f"{SENTENCE} {SENTENCE}\n\n", " ".join([SENTENCE] * 20) + "\n\n"
    encoded = by_words(short + long + short)
    found = pieces(encoded, Paragraphs(max_tokens=60, min_tokens=8).split(encoded))
    assert found[0].strip() == short.strip() and found[-1].strip() == short.strip()
    assert all(piece.strip().startswith("One") and piece.strip().endswith("seven.") for piece in found)
    assert sum(piece.count(SENTENCE) for piece in found[1:-1]) == 20


def test_sentences_inside_a_paragraph_that_fits_are_no_boundaries() -> None:
    encoded = by_words(f"{SENTENCE} {SENTENCE} {SENTENCE}\n\n" * 2)
    found = pieces(encoded, Paragraphs(max_tokens=40, min_tokens=0).split(encoded))
    assert [piece.count(SENTENCE) for piece in found] == [3, 3]


def test_a_heading_joins_the_long_paragraph_below_it() -> None:
    encoded = by_words("A heading\n\n" + " ".join([SENTENCE] * 20))
    found = pieces(encoded, Paragraphs(max_tokens=60, min_tokens=8).split(encoded))
    assert found[0].startswith("A heading\n\nOne two")
