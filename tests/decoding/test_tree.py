"""The token tree: merging, cutting and ordering, against slow obvious versions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.backend.rows import Rows
from longctx.decoding.tree import TokenTree, merge
from longctx.drafts import Draft, Draw

VOCAB = 5


def drafts(seed: int) -> list[Draft]:
    """Any drafts at all: tokens outside the vocabulary, repeated siblings, children worth more than their parents."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(rng.integers(0, 4)):
        size = int(rng.integers(0, 13))
        parents = [int(rng.integers(-1, node)) if node else -1 for node in range(size)]
        found.append(Draft(rng.integers(-1, VOCAB + 1, size), np.asarray(parents, np.int64), rng.random(size).round(1)))
    return found


seeds = settings(max_examples=60, deadline=None)
any_drafts = st.integers(0, 2**32 - 1).map(drafts)


def paths_of(draft: Draft, depth: int) -> set[tuple[int, ...]]:
    """The token paths of a draft, those through a foreign token or past ``depth`` left out."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(draft.tokens.tolist(), draft.parents.tolist(), strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return {path for path in paths if len(path) <= depth and all(0 <= token < VOCAB for token in path)}


def paths_in(tree: TokenTree) -> list[tuple[int, ...]]:
    return [tuple(tree.tokens[tree.path(node)].tolist()) for node in range(len(tree))]


def check(tree: TokenTree) -> None:
    paths = paths_in(tree)
    assert len(set(paths)) == len(paths), "a (parent, token) stands twice"
    for node, parent in enumerate(tree.parents.tolist()):
        assert parent < node
        assert tree.depths[node] == len(paths[node])
        assert parent < 0 or tree.values[node] <= tree.values[parent]


@seeds
@given(any_drafts, st.integers(0, 5))
def test_merging_keeps_every_path_once_and_nothing_else(many: Sequence[Draft], depth: int) -> None:
    tree = merge(many, depth, VOCAB)
    check(tree)
    assert set(paths_in(tree)) == set().union(*(paths_of(draft, depth) for draft in many))
    for path, sources in zip(paths_in(tree), tree.sources.tolist(), strict=True):
        assert sources == sum(1 << s for s, draft in enumerate(many) if path in paths_of(draft, depth))


@seeds
@given(any_drafts)
def test_merging_twice_or_in_another_order_gives_the_same_paths_and_values(many: Sequence[Draft]) -> None:
    def worth(tree: TokenTree) -> dict[tuple[int, ...], float]:
        return dict(zip(paths_in(tree), tree.values.tolist(), strict=True))

    once = worth(merge(many, 9, VOCAB))
    assert once.keys() == worth(merge([*many, *many], 9, VOCAB)).keys() == worth(merge(many[::-1], 9, VOCAB)).keys()
    tree = merge(many, 9, VOCAB)
    again = Draft(tree.tokens, tree.parents, tree.values)
    assert worth(merge([again], 9, VOCAB)) == once


@seeds
@given(any_drafts, st.integers(0, 20))
def test_the_best_nodes_hang_together_and_none_left_out_is_worth_more(many: Sequence[Draft], count: int) -> None:
    tree = merge(many, 9, VOCAB)
    cut = tree.best(count)
    check(cut)
    assert len(cut) == min(count, len(tree))
    left_out = set(paths_in(tree)) - set(paths_in(cut))
    values = dict(zip(paths_in(tree), tree.values.tolist(), strict=True))
    assert not left_out or not len(cut) or max(values[path] for path in left_out) <= cut.values.min()


@seeds
@given(any_drafts)
def test_the_best_path_comes_first_and_the_tree_stays_the_same(many: Sequence[Draft]) -> None:
    tree = merge(many, 9, VOCAB)
    ordered = tree.best_path_first()
    check(ordered)
    assert sorted(paths_in(ordered)) == sorted(paths_in(tree))
    chain = tree.chain()
    assert chain.is_chain
    assert ordered.tokens[: len(chain)].tolist() == chain.tokens.tolist()
    assert ordered.parents[: len(chain)].tolist() == list(range(-1, len(chain) - 1))


@seeds
@given(any_drafts)
def test_a_row_sees_the_cache_the_anchor_and_the_nodes_of_its_path(many: Sequence[Draft]) -> None:
    tree = merge(many, 9, VOCAB)
    count = len(tree) + 1  # the anchor is the first row of the pass
    rows = Rows([-1, *(tree.parents + 1).tolist()], 3, [None], torch.device("cpu"))
    seen = rows.mask(0, 3 + count)
    assert (seen is None) == (count == 1)
    for node in range(len(tree)):
        assert seen is not None
        path = [4 + own for own in tree.path(node)]
        assert seen[0, 0, node + 1].nonzero()[:, 0].tolist() == [0, 1, 2, 3, *path]
        assert int(rows.positions[node + 1]) == 3 + len(path)


def drawn(tokens: Sequence[int], nodes: Sequence[int] | None = None) -> Draft:
    """Siblings below the anchor, each drawn from a law of its own."""
    laws = [(np.asarray([token, (token + 1) % VOCAB]), np.asarray([0.5, 0.5])) for token in tokens]
    draws = tuple(Draw(node, *laws[node]) for node in (nodes if nodes is not None else range(len(tokens))))
    parents = np.full(len(tokens), -1)
    return Draft(np.asarray(tokens), parents, np.linspace(0.9, 0.5, len(tokens)), draws)


def test_a_token_drawn_by_two_drafts_is_one_node_with_both_draws_in_order() -> None:
    tree = merge([drawn([2, 3]), drawn([3, 1])], 3, VOCAB)
    assert tree.tokens.tolist() == [2, 3, 1]
    assert [draw.node for draw in tree.attempts[-1]] == [0, 1, 1, 2]


def test_draws_follow_their_nodes_when_rows_are_ordered() -> None:
    tree = merge([drawn([2, 3, 1])], 3, VOCAB)
    turned = TokenTree(
        tree.tokens, tree.parents, tree.depths, tree.values[::-1].copy(), tree.sources, tree.draws, tree.origins
    ).best_path_first()
    assert turned.tokens.tolist() == [1, 3, 2]
    assert [int(turned.tokens[draw.node]) for draw in turned.attempts[-1]] == [2, 3, 1]  # still in draw order
    assert all(draw.ids[0] == turned.tokens[draw.node] for draw in turned.draws)


def test_leaving_out_what_was_drawn_for_what_it_is_makes_the_rest_proposals() -> None:
    """Published mistake: dropping a drawn child for its own probability, and verifying the rest by their laws."""
    tree = merge([drawn([2, 3, 1])], 3, VOCAB)
    assert tree.attempts and not tree.best(2).attempts and tree.best(3).attempts
    assert not tree.proposed().attempts and tree.proposed().tokens.tolist() == tree.tokens.tolist()
    assert not merge([drawn([2])], 3, VOCAB).chain().attempts  # a chain follows the values, whatever is left out


def test_a_draw_outside_the_vocabulary_stays_an_attempt_that_fails() -> None:
    draft = drawn([2, 3])
    foreign = Draft(np.asarray([2, VOCAB + 4]), draft.parents, draft.values, draft.draws)
    tree = merge([foreign], 3, VOCAB)
    assert tree.tokens.tolist() == [2] and [draw.node for draw in tree.attempts[-1]] == [0, -1]
    assert [draw.node for draw in tree.best_path_first().attempts[-1]] == [0, -1]


def test_what_is_too_deep_takes_no_draw_of_the_levels_above() -> None:
    draft = Draft(
        np.asarray([1, 2]),
        np.asarray([-1, 0]),
        np.asarray([0.5, 0.4]),
        tuple(Draw(node, np.asarray([1, 2]), np.asarray([0.5, 0.5])) for node in (0, 1)),
    )
    tree = merge([draft], 1, VOCAB)
    assert tree.tokens.tolist() == [1] and [draw.node for draw in tree.draws] == [0]
