"""Scores and intervals against known values, and scoring faults that must not pass."""

from __future__ import annotations

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


def test_other_means_have_a_bootstrap_interval_that_is_the_same_every_time() -> None:
    values = [0.25, 0.5, 0.5, 0.75, 1.0, 0.25, 0.5, 0.75]
    low, high = interval(values)
    mean, error = sum(values) / 8, 0.2475 / 8**0.5  # standard deviation of the values over the root of their number
    assert (low, high) == interval(values)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.03) and high == pytest.approx(mean + 1.96 * error, abs=0.03)
