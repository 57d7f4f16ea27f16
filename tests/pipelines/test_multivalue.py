"""Several values of one key: half of them named is half right."""

from __future__ import annotations

import random

import pytest

from longctx.errors import BadOption
from longctx.pipelines.needle_scores import said
from longctx.pipelines.needles.multivalue import PLUGIN


def test_the_share_of_values_counts() -> None:
    (case,) = PLUGIN(values=4).draw(random.Random(0), [0.5], 0).cases
    assert len(case.needles) == len(case.answers) == 4 and case.needles[0].place == 0.5
    assert said(" ".join(case.answers[:2]), case, PLUGIN.scoring) == 0.5
    with pytest.raises(BadOption, match="values=1"):
        PLUGIN(values=1)
