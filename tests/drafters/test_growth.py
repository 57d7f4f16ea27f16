"""Trees grown from laws: how many nodes, in what order, and that drawn ones leave the model's law as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from longctx.decoding.acceptance import offers
from longctx.decoding.tree import TokenTree, merge
from longctx.drafters._growth import Growth, Law, grow, without_replacement
from longctx.drafts import Budget, Draft

VOCAB = 5
SHAPE = [(0,), (1,), (2,), (0, 0), (0, 1), (2, 0), (2, 1)]
DRAWN: tuple[Growth, ...] = ("shaped", "rsd_c", "rsd_s", "dyspec", "dyspec_threshold")


def law_of(context: Sequence[int]) -> Law:
    """A law that depends on the last two tokens."""
    weights = np.random.default_rng([7, *[token + 1 for token in context[-2:]]]).exponential(size=VOCAB)
    return dict(enumerate((0.8 * weights / weights.sum()).tolist()))


def model_law(context: Sequence[int]) -> NDArray[np.float64]:
    weights = np.random.default_rng([8, *[token + 1 for token in context[-2:]]]).exponential(size=VOCAB)
    return np.asarray(weights / weights.sum())


def tokens_of_two(tree: TokenTree) -> NDArray[np.float64]:
    """The joint law of the next two tokens that the residual rule gives with this tree, every branch summed."""
    joint = np.zeros((VOCAB, VOCAB))
    start = [0, 1]
    reached = 1.0
    children, chances, rest = offers(tree, -1, model_law(start))
    for child, chance in zip(children, chances, strict=True):
        first = int(tree.tokens[child])
        below, odds, left = offers(tree, child, model_law([*start, first]))
        here = reached * chance
        for grandchild, other in zip(below, odds, strict=True):
            joint[first, int(tree.tokens[grandchild])] += here * other
            here *= 1 - other
        joint[first] += here * left
        reached *= 1 - chance
    for first in range(VOCAB):
        joint[first] += reached * rest[first] * model_law([*start, first])
    return joint


def mean_law(growth: Growth, trees: int, spoil: str = "") -> NDArray[np.float64]:
    """The joint law over many drawn trees."""
    total = np.zeros((VOCAB, VOCAB))
    for seed in range(trees):
        draft = grow(growth, law_of, [0, 1], Budget(7, 2), np.random.default_rng(seed), shape=SHAPE)
        tree = merge([draft], 2, VOCAB)
        if spoil:  # drawn siblings tried by their probability
            tidy = sorted(tree.draws, key=lambda d: -float(d.probabilities[d.ids == tree.tokens[d.node]].sum()))
            tree = TokenTree(tree.tokens, tree.parents, tree.depths, tree.values, tree.sources, tuple(tidy))
        total += tokens_of_two(tree)
    return total / trees


@pytest.mark.parametrize("growth", DRAWN)
def test_drawn_trees_leave_the_law_of_the_model(growth: Growth) -> None:
    expected = np.stack([model_law([0, 1])[first] * model_law([0, 1, first]) for first in range(VOCAB)])
    np.testing.assert_allclose(mean_law(growth, 700), expected, rtol=0, atol=0.025)


def test_siblings_out_of_draw_order_would_be_noticed() -> None:
    expected = np.stack([model_law([0, 1])[first] * model_law([0, 1, first]) for first in range(VOCAB)])
    assert np.abs(mean_law("rsd_c", 300, spoil="order") - expected).max() > 0.05


@pytest.mark.parametrize("growth", [*DRAWN, "likeliest"])
def test_trees_keep_their_budget_and_values_fall_along_every_path(growth: Growth) -> None:
    for seed in range(20):
        for budget in (Budget(1, 9), Budget(4, 2), Budget(12, 3), Budget(30, 9)):
            draft = grow(growth, law_of, [0, 1], budget, np.random.default_rng(seed), shape=SHAPE)
            assert len(draft) <= budget.nodes
            depths: list[int] = []
            for parent in draft.parents.tolist():
                depths.append(1 if parent < 0 else depths[parent] + 1)
            assert max(depths, default=0) <= budget.depth
            above = np.append(draft.values, 1.0)[draft.parents]
            assert (draft.values <= above + 1e-9).all() and (draft.values > 0).all()


class Foreseen:
    """Draws the likeliest, whatever was drawn before: two orders of the same draws give the same tokens."""

    def choice(self, size: int, p: NDArray[np.float64]) -> int:
        return int(np.argmax(p))


def places(context: Sequence[int], depth: int, value: float = 1.0) -> list[tuple[tuple[int, ...], float]]:
    """Every draw of a full tree of ``depth`` behind ``context``: its path, and the value of the place it is made at."""
    law, found = law_of(context), []
    value *= sum(law.values())
    while law:
        token = max(law, key=lambda one: law[one])  # noqa: B023
        chance = law[token] / sum(law.values())
        found.append(((token,), value))
        if depth > 1:
            found += [((token, *path), at) for path, at in places([*context, token], depth - 1, value * chance)]
        del law[token]
        value *= 1 - chance
    return found


def paths(draft: Draft) -> dict[tuple[int, ...], float]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(draft.tokens.tolist(), draft.parents.tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return dict(zip(found, draft.values.tolist(), strict=True))


def test_a_shape_says_how_many_draws_are_made_below_each_draw() -> None:
    for seed in range(9):
        draft = grow("shaped", law_of, [0, 1], Budget(99, 9), np.random.default_rng(seed), shape=SHAPE)
        assert draft.parents.tolist() == [-1, -1, -1, 0, 0, 2, 2] and len(draft.draws) == 7
    few = grow("shaped", lambda context: {3: 0.5}, [0, 1], Budget(99, 9), np.random.default_rng(0), shape=SHAPE)
    assert few.tokens.tolist() == [3, 3], "a law of one token gives one child"


def test_constant_branching_makes_whole_levels_as_long_as_the_nodes_that_are_left_hold_the_widest() -> None:
    def levels(law: Law, nodes: int, depth: int = 9) -> list[int]:
        draft = grow("rsd_c", lambda context: law, [0, 1], Budget(nodes, depth), np.random.default_rng(0))
        depths: list[int] = []
        for parent in draft.parents.tolist():
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return [depths.count(depth) for depth in range(1, max(depths, default=0) + 1)]

    wide = {token: 0.2 for token in range(4)}
    assert levels(wide, 20) == [3, 6, 6] and levels(wide, 21) == [3, 6, 6, 6] and levels(wide, 30, 2) == [3, 6]
    assert levels(wide, 2) == [] and levels({}, 20) == []
    # of a law of two tokens a level takes fewer than it may, and what they leave counts for the next
    assert levels({3: 0.5, 4: 0.3}, 20) == [2, 4, 4, 4, 4] and levels({3: 0.5}, 9) == [1, 1, 1, 1]


def test_by_a_threshold_every_place_above_it_is_drawn_at_and_no_other_layer_by_layer() -> None:
    every = places([0, 1], 3)
    for least in (0.8, 0.3, 0.1, 0.03, 0.01, 1e-9):
        draft = grow("dyspec_threshold", law_of, [0, 1], Budget(999, 3), Foreseen(), least)  # type: ignore[arg-type]
        found = paths(draft)
        assert found.keys() == {path for path, value in every if value >= least} and len(found) == len(draft)
        assert [len(path) for path in found] == sorted(len(path) for path in found)
    assert len(found) == VOCAB + VOCAB**2 + VOCAB**3
    assert not len(grow("dyspec_threshold", law_of, [0, 1], Budget(99, 3), np.random.default_rng(0), 0.81))


def test_a_threshold_at_the_value_of_the_last_place_gives_the_tree_of_that_many_nodes() -> None:
    every = sorted((value for _, value in places([0, 1], 4)), reverse=True)
    for nodes in (1, 2, 3, 7, 20, 60):
        least = (every[nodes - 1] + every[nodes]) / 2
        fixed = grow("dyspec", law_of, [0, 1], Budget(nodes, 4), Foreseen())  # type: ignore[arg-type]
        other = grow("dyspec_threshold", law_of, [0, 1], Budget(999, 4), Foreseen(), least)  # type: ignore[arg-type]
        assert paths(other) == pytest.approx(paths(fixed))


def test_without_a_threshold_it_is_one_over_the_nodes() -> None:
    for nodes in (3, 12, 40):
        given = grow("dyspec_threshold", law_of, [0, 1], Budget(nodes, 9), np.random.default_rng(1), 1 / nodes)
        usual = grow("dyspec_threshold", law_of, [0, 1], Budget(nodes, 9), np.random.default_rng(1))
        assert paths(usual) == paths(given) and 0 < len(usual) <= nodes


def test_the_likeliest_tree_is_the_best_of_all() -> None:
    draft = grow("likeliest", law_of, [0, 1], Budget(9, 2), np.random.default_rng(0))
    first = law_of([0, 1])
    every = [*first.values(), *(p * q for a, p in first.items() for q in law_of([0, 1, a]).values())]
    assert draft.values.tolist() == pytest.approx(sorted(every, reverse=True)[:9])
    assert draft.draws == ()


def test_draws_without_replacement_follow_their_laws_and_come_in_draw_order() -> None:
    rng = np.random.default_rng(0)
    law = {4: 0.6, 5: 0.3, 6: 0.1}
    first: Counter[int] = Counter()
    for _ in range(1500):
        one, two = without_replacement(law, 2, rng)
        first[one[0]] += 1
        assert one[2].tolist() == pytest.approx([0.6, 0.3, 0.1]) and one[0] not in two[1]
        assert two[2].sum() == pytest.approx(1) and len(two[1]) == 2
    assert first[4] / 1500 == pytest.approx(0.6, abs=0.05)
    assert len(without_replacement({1: 0.5, 2: 0.0}, 5, rng)) == 1
