"""Variable tracking: the chain, followed by a slow reader, gives the answers; it never runs backward."""

from __future__ import annotations

import random
import re

from longctx.pipelines.needles.tracking import PLUGIN


def test_following_the_assignments_gives_the_answers() -> None:
    made = PLUGIN(hops=4).draw(random.Random(0), [0.0, 0.5, 1.0], 2)
    for depth, case in zip((0.0, 0.5, 1.0), made.cases, strict=True):
        chains = (case.needles, *made.distractors)
        needles = sorted((needle for chain in chains for needle in chain), key=lambda needle: needle.place)
        values: dict[str, str] = {}
        for needle in needles:
            if found := re.fullmatch(r"Variable (\w+) gets the value (\d+)\.", needle.text):
                values[found[1]] = found[2]
            else:
                found = re.fullmatch(r"Variable (\w+) gets the value of variable (\w+)\.", needle.text)
                assert found is not None
                values[found[1]] = values[found[2]]
        wanted = case.keys[0]
        assert wanted in case.question
        assert {name for name, value in values.items() if value == wanted} == set(case.answers)
        assert case.needles[0].place == depth
