"""Many keys: distractors differ from the needle in town and number alone."""

from __future__ import annotations

import random
import re

from longctx.pipelines.needles.multikey import PLUGIN


def test_distractors_tell_of_other_towns_in_the_same_words() -> None:
    made = PLUGIN().draw(random.Random(0), [0.5], 15)
    town, number = made.cases[0].keys
    form = re.escape(made.cases[0].needles[0].text).replace(town, r"[A-Z][a-z]+").replace(number, r"\d{6}")
    assert len(made.distractors) == 15 == PLUGIN.distractors
    for (needle,) in made.distractors:
        assert re.fullmatch(form, needle.text) and town not in needle.text and number not in needle.text
