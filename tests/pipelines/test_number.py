"""A number of five digits; part of a longer number is not it."""

from __future__ import annotations

import random

from longctx.pipelines.needle_scores import said
from longctx.pipelines.needles.number import PLUGIN


def test_the_number_counts_only_as_a_whole() -> None:
    (case,) = PLUGIN().draw(random.Random(0), [0.5], 0).cases
    (number,) = case.answers
    assert len(number) == 5 and number.isdigit()
    assert said(f"It is {number}.", case, PLUGIN.scoring) == 1.0
    assert said(f"It is 1{number}.", case, PLUGIN.scoring) == 0.0
    assert said(f"It is {number}0.", case, PLUGIN.scoring) == 0.0
