"""SmartSpec's k: the one at which (1 - a^(k+1)) / (1 - a) a second begins to fall, and chains only."""

from __future__ import annotations

import numpy as np
import pytest

from longctx import plugins
from longctx.decoding.tree import merge
from longctx.drafts import Draft


def settled(right: float, per_row: float, rounds: int = 300) -> list[int]:
    """The lengths of the last rounds, for drafts right with chance ``right`` and rows that cost ``per_row`` each."""
    control = plugins.load("controllers", "smartspec").begin()
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(rounds):
        budget = control.plan(99, 0)
        count = budget.nodes if budget is not None else 0
        if budget is not None:
            control.cut(merge([Draft.chain([1] * count, [0.9] * count)], count, 5), 0.0)
        came: list[int] = []
        while len(came) < count and rng.random() < right:
            came.append(1)
        control.feedback([*came, 0], 1 + count, 1.0 + per_row * count, 0)
        lengths.append(count)
    return lengths[-100:]


def test_the_better_the_drafts_and_the_cheaper_the_rows_the_longer_the_chain() -> None:
    good, bad = np.mean(settled(0.9, 0.05)), np.mean(settled(0.4, 0.05))
    dear = np.mean(settled(0.9, 0.5))
    assert good > bad and good > dear
    assert good >= 4


def test_where_drafts_never_pay_a_chain_of_one_is_tried_now_and_then() -> None:
    lengths = settled(0.0, 0.5)
    assert 1 <= sum(length > 0 for length in lengths) <= 8


def test_of_a_tree_only_its_best_chain_is_verified() -> None:
    control = plugins.load("controllers", "smartspec").begin()
    tree = merge([Draft(np.asarray([1, 2, 3]), np.asarray([-1, -1, 1]), np.asarray([0.3, 0.8, 0.7]))], 9, 9)
    assert control.cut(tree, 0.0).tokens.tolist() == [2, 3]
    assert control.plan(1, 0).depth == pytest.approx(1)
