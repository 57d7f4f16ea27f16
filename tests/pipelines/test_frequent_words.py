"""Frequent words: counting the text gives the answers, and their law is the one stated."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import islice

import pytest

from longctx.pipelines.needles.frequent_words import PLUGIN


def test_counting_gives_the_answers_and_ranks_follow_the_law() -> None:
    made = PLUGIN(words=3, alpha=2.0).draw(random.Random(0), [], 0)
    assert made.filler is not None
    for lines in (40, 1000):
        counts = Counter(re.findall("[a-z]+", " ".join(islice(made.filler(), lines))))
        assert {word for word, _ in counts.most_common(3)} == set(made.cases[0].answers)
    first, second = (count for _, count in counts.most_common(2))
    assert first / second == pytest.approx(4.0, rel=0.1)
