"""Several keys in one question: every key is asked for, each in a sentence of its own."""

from __future__ import annotations

import random

from longctx.pipelines.needles.multiquery import PLUGIN


def test_every_key_is_asked_for_and_has_its_number() -> None:
    (case,) = PLUGIN(keys=3).draw(random.Random(0), [0.25], 0).cases
    names, numbers = case.keys[:3], case.answers
    for needle, name, number in zip(case.needles, names, numbers, strict=True):
        assert name in case.question and needle.text == f"The ticket number of {name} is {number}."
