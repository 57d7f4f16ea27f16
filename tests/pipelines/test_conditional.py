"""Conditional needles: a parcel that does not meet the condition makes the answer wrong."""

from __future__ import annotations

import random

from longctx.pipelines.needle_scores import said
from longctx.pipelines.needles.conditional import PLUGIN


def test_red_parcels_are_wanted_and_blue_ones_are_not() -> None:
    (case,) = PLUGIN(matches=2).draw(random.Random(0), [0.5], 0).cases
    assert {needle.evidence for needle in case.needles if "red" in needle.text} == {True}
    assert {needle.evidence for needle in case.needles if "blue" in needle.text} == {False}
    assert said(" ".join(case.answers), case, PLUGIN.scoring) == 1.0
    assert said(case.answers[0], case, PLUGIN.scoring) == 0.0
    assert said(" ".join([*case.answers, case.others[0]]), case, PLUGIN.scoring) == 0.0
