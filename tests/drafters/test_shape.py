"""Shapes of trees: templates by the products of ranks, and rates that learn which children are right."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.drafters._shape import Ranks, Rates, template
from longctx.drafts import Draft


def closed(shape: list[Ranks]) -> bool:
    """Every place stands behind its parent, and behind the sibling of the rank before its own."""
    seen: set[Ranks] = {()}
    for path in shape:
        if path[:-1] not in seen or (path[-1] and (*path[:-1], path[-1] - 1) not in seen):
            return False
        seen.add(path)
    return len(seen) == len(shape) + 1


def test_the_template_has_the_papers_places_a_level_and_children_by_rank() -> None:
    shape = template((8, 21, 25, 15, 8, 3), 8)
    assert [sum(len(path) == depth for path in shape) for depth in range(1, 7)] == [8, 21, 25, 15, 8, 3]
    assert [sum(path[:-1] == (rank,) for path in shape) for rank in range(8)] == [8, 4, 3, 2, 1, 1, 1, 1]
    assert closed(list(shape)) and len(shape) == 80
    for depth in (2, 3):  # no place that is left out has a smaller product
        level = {path for path in shape if len(path) == depth}
        products = {path: math.prod(rank + 1 for rank in path) for path in itertools.product(range(8), repeat=depth)}
        assert max(products[path] for path in level) <= min(
            value for path, value in products.items() if path not in level
        )


def test_every_beginning_of_a_template_is_a_tree_of_the_lowest_ranks() -> None:
    shape = template((8, 21, 25, 15, 8, 3), 8)
    products = [math.prod(rank + 1 for rank in path) for path in shape]
    assert products == sorted(products) and shape[0] == (0,)
    for depth in range(1, 8):
        shallow = [path for path in shape if len(path) <= depth]
        assert len(shallow) == sum((8, 21, 25, 15, 8, 3)[:depth])
        assert all(closed(shallow[:places]) for places in range(len(shallow) + 1))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(0, 40), st.integers(1, 4))
def test_the_learned_shape_is_the_likeliest_one_there_is(seed: int, places: int, depth: int) -> None:
    """Against all places of the first ranks, for rates that fall."""
    draw, rates = np.random.default_rng(seed), Rates()
    rates._hits = rates._tries * np.sort(draw.random(rates._hits.shape))[:, ::-1]
    shape = rates.shape(places, depth)
    known = rates._hits / rates._tries
    every = [
        math.prod(known[at, rank] for at, rank in enumerate(path))
        for length in range(1, depth + 1)
        for path in itertools.product(range(known.shape[1]), repeat=length)
    ]
    found = [math.prod(known[at, rank] for at, rank in enumerate(path)) for path in shape]
    assert closed(shape) and sorted(found, reverse=True) == pytest.approx(sorted(every, reverse=True)[:places])


def test_rates_grow_where_children_were_right_and_judge_none_below_a_wrong_one() -> None:
    rates = Rates()
    before = rates._hits / rates._tries
    draft = Draft(np.asarray([5, 6, 7, 8, 9]), np.asarray([-1, -1, 0, 1, 3]), np.full(5, 0.1))
    for _ in range(200):
        rates.learn(draft, [6, 8, 4])  # the second child, its first, and something else
    now = rates._hits / rates._tries
    assert now[0, 1] > 0.9 and now[0, 0] < 0.05 and now[1, 0] > 0.9 and now[2, 0] < 0.05
    assert (now[3:] == before[3:]).all() and (now[:, 2:] == before[:, 2:]).all()
    assert rates.shape(4, 9)[1:3] == [(1,), (1, 0)], "the first child stands before the second, whatever it is worth"
    many = Draft(np.arange(12), np.full(12, -1), np.full(12, 0.05))
    rates.learn(many, [11])  # of more siblings than ranks the first are judged
    assert (rates._tries[0, 2:] == 13).all() and rates._hits[0, 2:].sum() < 12
    rates.learn(Draft.empty(), [6])
    assert (rates._tries >= 12).all()
