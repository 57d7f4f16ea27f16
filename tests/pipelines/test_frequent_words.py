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
    assert made.filler is not None and made.counted is not None
    for lines in (40, 1000):
        text = " ".join(islice(made.filler(), lines))
        counts = Counter(re.findall("[a-z]+", text))
        assert [word for word, _ in counts.most_common(3)] == list(made.counted(text))
    assert made.counted(text) == made.cases[0].answers, "a long text follows the law"
    first, second = (count for _, count in counts.most_common(2))
    assert first / second == pytest.approx(4.0, rel=0.1)


def test_the_answers_are_those_of_the_text_even_where_chance_has_other_ones() -> None:
    others = 0
    for seed in range(40):
        made = PLUGIN(words=3).draw(random.Random(seed), [], 0)
        assert made.filler is not None and made.counted is not None
        text = " ".join(islice(made.filler(), 8))
        (*top, beyond) = Counter(re.findall("[a-z]+", text)).most_common(4)
        if top[-1][1] == beyond[1]:
            assert made.counted(text) == ()
        else:
            assert set(made.counted(text)) == {word for word, _ in top}
            others += set(made.counted(text)) != set(made.cases[0].answers)
    assert others
