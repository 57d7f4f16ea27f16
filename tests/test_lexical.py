"""BM25 against the formula written out, and which words are counted."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.lexical import Lexical, words

WORDS = ("letter", "winter", "room", "code", "river", "street", "der", "你好吗", "Ünal", "x1", "the", "a")
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join), min_size=1, max_size=12)


def slow_bm25(texts: list[str], question: str) -> list[float]:
    """Robertson's formula with Lucene's idf and tf, k1 = 1.2 and b = 0.75, one unit and one word at a time."""
    rows = [words(text) for text in texts]
    mean = sum(len(row) for row in rows) / len(rows)
    scores = []
    for row in rows:
        total = 0.0
        for word in words(question):
            holders = sum(word in other for other in rows)
            if not holders:
                continue
            idf = math.log(1 + (len(rows) - holders + 0.5) / (holders + 0.5))
            tf = Counter(row)[word]
            total += idf * tf / (tf + 1.2 * (1 - 0.75 + 0.75 * len(row) / mean))
        scores.append(total)
    return scores


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.lists(st.sampled_from(WORDS + ("unseen",)), max_size=6).map(" ".join))
def test_scores_are_bm25(texts: list[str], question: str) -> None:
    index = Lexical(texts)
    found = index.scores(question)
    assert found.shape == (len(texts),) and found.dtype == np.float32
    np.testing.assert_allclose(found, slow_bm25(texts, question), rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_a_words_weight_is_its_idf_and_no_word_weighs_more_than_one_never_seen(texts: list[str]) -> None:
    index = Lexical(texts)
    rows = [words(text) for text in texts]
    for word in {word for row in rows for word in row}:
        holders = sum(word in row for row in rows)
        expected = math.log(1 + (len(rows) - holders + 0.5) / (holders + 0.5))
        assert index.weight(word) == pytest.approx(expected, rel=1e-6)
        assert index.weight(word) <= index.weight("unseen")


def test_words_are_folded_stopped_and_cjk_is_counted_in_pairs() -> None:
    assert words("The Letter of ÜNAL-Straße, x_1!") == ["letter", "ünal", "strasse", "x", "1"]
    assert words("你好吗 北") == ["你好", "好吗", "北"]
    assert words("room7部屋7") == ["room7", "部屋", "7"]
    assert words(" \n…\ud83d") == []


def test_marks_belong_to_their_letters_and_accents_count_alike_however_they_are_written() -> None:
    assert words("हिन्दी लड़की, लड़का") == ["हिन्दी", "लड़की", "लड़का"] != words("लड़का")
    assert words("তিনি বাংলায় கற்றல்") == ["তিনি", "বাংলায়", "கற்றல்"]
    assert words("שָׁלוֹם مُدَرِّس") == ["שָׁלוֹם", "مُدَرِّس"]
    assert words("Jose\u0301 e\u0301te\u0301") == words("José été") == ["josé", "été"]
    assert words("می\u200cخواهم") == ["می\u200cخواهم"] and words("\u0301 a\u0301_b") == ["á", "b"]
    assert Lexical(["Jose\u0301 reads.", "Nobody reads."]).scores("José")[0] > 0


@pytest.mark.parametrize("texts", [["", " "], ["the of and"], ["。", "!!"]])
def test_texts_without_any_word_score_nothing(texts: list[str]) -> None:
    index = Lexical(texts)
    assert index.scores("the letter").tolist() == [0.0] * len(texts)
    assert index.weight("letter") > 0


def test_the_same_texts_give_the_same_scores_and_repeats_of_one_text_tie() -> None:
    texts = ["the letter in the room"] * 500 + ["a river"]
    first, second = Lexical(texts).scores("letter river"), Lexical(texts).scores("letter river")
    assert np.array_equal(first, second) and np.isfinite(first).all()
    assert len(set(first[:500].tolist())) == 1 and first[500] > first[0]


def test_words_that_ask_need_not_stand_in_the_text() -> None:
    index = Lexical(["The kettle is kept in the pantry.", "Rain fell on the harbour."])
    assert index.coverage("Where is the kettle?") == pytest.approx(1.0)
    assert index.coverage("Who repaired the telescope?") == 0.0
    half = index.coverage("Where is the kettle, and where is the telescope?")
    assert 0.0 < half < 1.0
