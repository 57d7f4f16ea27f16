"""The pass key: the filler repeats itself and holds no number; a text has one key."""

from __future__ import annotations

import random
from itertools import islice

from longctx.pipelines.needles.passkey import PLUGIN


def test_the_filler_repeats_itself_and_every_depth_stands_alone() -> None:
    made = PLUGIN().draw(random.Random(0), [0.0, 1.0], 0)
    assert made.filler is not None and PLUGIN.stands == "alone"
    filler = list(islice(made.filler(), 40))
    assert len(set(filler)) < 10 and not any(c.isdigit() for c in "".join(filler))
    assert made.cases[0].answers != made.cases[1].answers
