"""The fixed controller verifies its count, the likeliest first; zero is plain decoding."""

from __future__ import annotations

import numpy as np
import pytest
from scripted import Scripted, Telling, half, plainly

from longctx import plugins
from longctx.decoding.acceptance import Greedy
from longctx.decoding.loop import Decoding
from longctx.decoding.tree import merge
from longctx.drafts import Draft
from longctx.errors import BadOption

PROMPT = [3, 1, 4, 1, 5]


def test_the_likeliest_nodes_are_kept_up_to_the_count() -> None:
    control = plugins.load("controllers", "fixed:nodes=3").begin()
    values = np.asarray([0.2, 0.9, 0.1, 0.8, 0.3])
    tree = merge([Draft(np.arange(5), np.full(5, -1), values)], 1, 9)
    assert sorted(control.cut(tree, 0.0).values.tolist()) == [0.3, 0.8, 0.9]
    assert control.plan(4, 0).nodes == 3


@pytest.mark.parametrize("spec", [f"{name}" for name in plugins.names("controllers")])
def test_no_controller_changes_what_comes_out(spec: str) -> None:
    target = Scripted()
    control = plugins.load("controllers", spec).begin()
    drafters = [("half", Telling(PROMPT, half))]
    decoding = Decoding(target, PROMPT, Greedy(), drafters, control, max_new_tokens=60)
    assert list(decoding.run()) == plainly(PROMPT, 60)
    assert decoding.stats.drafted > 0


def test_without_nodes_nothing_is_asked_for() -> None:
    target = Scripted()
    control = plugins.load("controllers", "fixed:nodes=0").begin()
    decoding = Decoding(target, PROMPT, Greedy(), [("half", Telling(PROMPT, half))], control, max_new_tokens=9)
    assert list(decoding.run()) == plainly(PROMPT, 9) and decoding.stats.drafted == 0
    with pytest.raises(BadOption, match="nodes=-1"):
        plugins.load("controllers", "fixed:nodes=-1")
