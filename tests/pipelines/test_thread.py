"""Thread following: forward steps ascend in the text, backward ones descend, and the last names the answer."""

from __future__ import annotations

import random

from longctx.pipelines.needles.thread import PLUGIN


def test_steps_lead_from_the_first_person_to_the_answer_in_the_direction_asked_for() -> None:
    for direction, sign in (("forward", 1), ("backward", -1)):
        (case,) = PLUGIN(steps=4, direction=direction).draw(random.Random(0), [0.5], 0).cases
        places = [needle.place for needle in case.needles]
        assert len(places) == 4 and places == sorted(places), "in the order of the text"
        steps = case.needles[::sign]
        assert steps[-1].place == 0.5
        holder = case.keys[0]
        assert holder in case.question
        for needle in steps:
            assert needle.text.startswith(f"{holder} handed")
            holder = needle.text.removesuffix(".").rpartition(" to ")[2]
        assert case.answers == (holder,)
