"""Two facts: taking the thing stands before the last move, and the first move counts no more."""

from __future__ import annotations

import random

from longctx.pipelines.needle_scores import said
from longctx.pipelines.needles.location import PLUGIN


def test_the_last_room_is_right_and_the_first_is_not() -> None:
    for depth in (0.0, 0.5, 1.0):
        (case,) = PLUGIN().draw(random.Random(0), [depth], 0).cases
        before, taken, after = case.needles
        assert before.place <= taken.place <= after.place == depth
        assert case.others[0] in before.text and case.answers[0] in after.text
        assert said(f"in the {case.answers[0]}", case, PLUGIN.scoring) == 1.0
        assert said(f"in the {case.others[0]}", case, PLUGIN.scoring) == 0.0
