"""How sure a difference is: intervals that cover it as often as they say, and McNemar's test against the binomial."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from scipy.stats import binomtest

paired = importlib.import_module("longctx.pipelines.paired")


@pytest.mark.parametrize(("mine", "other"), [(0, 0), (1, 0), (5, 1), (3, 3), (12, 4), (40, 22)])
def test_mcnemar_is_the_two_sided_binomial_test_of_the_questions_that_differ(mine: int, other: int) -> None:
    first = [1.0] * mine + [0.0] * other + [1.0, 0.0] * 7
    second = [0.0] * mine + [1.0] * other + [1.0, 0.0] * 7
    found = paired.mcnemar(first, second)
    wanted = binomtest(mine, mine + other, 0.5).pvalue if mine + other else 1.0
    assert (found.only_first, found.only_second) == (mine, other) and found.p == pytest.approx(wanted)


def test_mcnemar_refuses_graded_scores() -> None:
    with pytest.raises(ValueError, match="right"):
        paired.mcnemar([0.5], [1.0])


def test_the_interval_covers_the_true_difference_about_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        base = rng.random(80)
        first, second = base + rng.normal(0.1, 0.2, 80), base
        low, high = paired.interval(first, second, seed=trial)
        covered += low <= 0.1 <= high
    assert 180 <= covered <= 198


def test_the_interval_is_that_of_pairs_and_not_of_two_samples() -> None:
    """Where every question differs by the same, nothing is uncertain, however different the questions are."""
    second = np.linspace(0, 0.8, 50)
    assert paired.interval(second + 0.1, second) == pytest.approx((0.1, 0.1))


def test_documents_are_drawn_as_wholes_where_there_are_enough() -> None:
    """Where all questions of a document differ alike, thirty of each tell no more than one."""
    rng = np.random.default_rng(3)
    effects, documents = rng.normal(0, 1, 12), np.repeat(np.arange(12), 30)
    zeros = np.zeros(len(documents))
    low, high = paired.interval(effects[documents], zeros, documents=documents.tolist())
    one = paired.interval(effects, np.zeros(12))
    assert (low, high) == pytest.approx(one, abs=1e-9)
    alone = paired.interval(effects[documents], zeros)
    assert alone[1] - alone[0] < (high - low) / 4
    few = [f"{number % 4}" for number in documents.tolist()]
    assert paired.interval(effects[documents], zeros, documents=few) == alone
    assert not paired.by_document(range(12)) and paired.by_document(documents.tolist())
    with pytest.raises(ValueError, match="2 documents of 3 questions"):
        paired.interval([1, 2, 3], [0, 0, 0], documents=["a", "b"])


def test_intervals_of_documents_cover_the_true_difference_about_95_times_in_100() -> None:
    """Documents of different numbers of questions, whose questions share what their document is like."""
    rng = np.random.default_rng(5)
    covered = [0, 0]
    for trial in range(200):
        documents = np.repeat(np.arange(40), rng.integers(1, 9, 40))
        differences = 0.1 + rng.normal(0, 0.3, 40)[documents] + rng.normal(0, 0.2, len(documents))
        for place, groups in enumerate((documents.tolist(), ())):
            low, high = paired.interval(differences, np.zeros(len(documents)), seed=trial, documents=groups)
            covered[place] += low <= 0.1 <= high
    assert 178 <= covered[0] <= 198 and covered[1] < 170
