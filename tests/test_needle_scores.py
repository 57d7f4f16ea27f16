"""Scores and intervals against known values, and scoring faults that must not pass."""

from __future__ import annotations

import random

import pytest

from longctx.pipelines.needle_scores import interval, kept, names, said
from longctx.pipelines.needles._nouns import Case

CASE = Case("?", ("4711", "red lamp"), (), (), ("blue",))


@pytest.mark.parametrize(
    ("output", "answer", "found"),
    [
        ("It is 4711.", "4711", True),
        ("It is 47110.", "4711", False),
        ("It is 14711.", "4711", False),
        ("The RED\n lamp", "red lamp", True),
        ("the red-lamp", "red lamp", False),
        ("predict", "red", False),
        ("a+b", "a+b", True),
        ("", "4711", False),
    ],
)
def test_an_answer_is_named_as_whole_words(output: str, answer: str, found: bool) -> None:
    assert names(output, answer) is found


def test_the_three_ways_of_scoring() -> None:
    both, one, wrong = "4711 and the red lamp", "only 4711", "4711, the red lamp and the blue one"
    assert [said(text, CASE, "share") for text in (both, one, wrong)] == [1.0, 0.5, 1.0]
    assert [said(text, CASE, "substring") for text in (both, one, wrong)] == [1.0, 0.0, 1.0]
    assert [said(text, CASE, "exact") for text in (both, one, wrong)] == [1.0, 0.0, 0.0]


def test_evidence_is_kept_when_it_lies_whole_in_one_span() -> None:
    assert kept([(10, 20)], [(0, 10), (10, 20)]) == 1.0
    assert kept([(10, 20)], [(0, 15), (15, 30)]) == 0.0
    assert kept([(10, 20), (40, 50)], [(5, 25)]) == 0.5
    assert kept([(10, 20)], []) == 0.0
    assert kept([], [(0, 100)]) is None


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # Wilson's score interval at 95 %, from published tables
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 1, 0.2065, 1.0),
        (38, 40, 0.8350, 0.9862),
    ],
)
def test_shares_of_right_answers_have_wilsons_interval(right: int, n: int, low: float, high: float) -> None:
    assert interval([1.0] * right + [0.0] * (n - right)) == pytest.approx((low, high), abs=1e-4)


def test_other_means_have_the_interval_of_right_and_wrong_which_is_never_too_narrow() -> None:
    for values in ([0.5], [0.5] * 4, [0.25, 0.5, 0.5, 0.75, 1.0, 0.25, 0.5, 0.75]):
        low, high = interval(values)
        assert 0.0 <= low < sum(values) / len(values) < high <= 1.0
    assert interval([0.5] * 4) == interval([0.0, 1.0] * 2)


def test_the_interval_of_shares_holds_their_mean_as_often_as_it_says() -> None:
    rng = random.Random(0)
    drawn = [[rng.choice((0.0, 0.25, 0.75, 1.0, 1.0)) for _ in range(12)] for _ in range(2000)]
    held = [low <= 0.6 <= high for low, high in map(interval, drawn)]
    assert sum(held) / len(held) >= 0.95
