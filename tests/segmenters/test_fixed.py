"""Fixed windows: exact sizes, and cuts before the character that a window would part."""

from __future__ import annotations

import pytest
from splitting import by_bytes, by_words, pieces

from longctx.errors import BadOption
from longctx.segmenters.splitters.fixed import Fixed


def test_every_window_but_the_last_holds_exactly_the_tokens_asked_for() -> None:
    encoded = by_words("word " * 1000)
    sizes = [encoded.count(span.start, span.end) for span in Fixed(tokens=64).split(encoded)]
    assert set(sizes[:-1]) == {64} and 0 < sizes[-1] <= 64


def test_a_cut_inside_a_character_moves_before_it() -> None:
    encoded = by_bytes("😀" * 20)  # 80 tokens
    sizes = [encoded.count(span.start, span.end) for span in Fixed(tokens=10).split(encoded)]
    assert sizes == [8] * 10


def test_a_text_that_fits_is_one_window() -> None:
    encoded = by_words("one two three")
    assert pieces(encoded, Fixed(tokens=8).split(encoded)) == ["one two three"]


def test_one_character_of_more_tokens_than_the_window_is_kept_whole() -> None:
    encoded = by_bytes("abc")
    starts = [0] * 20 + [1] + [2] * 20
    encoded = type(encoded)(encoded.document, encoded.token_ids, encoded.token_starts[:0])
    encoded = type(encoded)(
        encoded.document, by_bytes("x" * 41).token_ids, by_bytes("x" * 41).token_starts * 0 + starts
    )
    assert pieces(encoded, Fixed(tokens=8).split(encoded)) == ["a", "b", "c"]


def test_a_window_too_small_for_a_character_is_refused() -> None:
    with pytest.raises(BadOption, match="tokens=4"):
        Fixed(tokens=4)
