"""Token Recycling: its table, its tree, and that what was named once is guessed the next time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.drafters.recycling import _TEMPLATE, Recycled, Recycling
from longctx.drafts import Budget, DraftSource, Successors, Verified

VOCAB = 50
CHANCES = [0.3, 0.2, 0.1, 0.09, 0.08, 0.07, 0.06, 0.05]


def start(*prompt: int, prior: Successors | None = None, **options: Any) -> Recycled:
    asked = None if prior is None else lambda further: prior
    return Recycling(**options).begin(DraftSource(np.asarray(prompt, dtype=np.int32), VOCAB, successors=asked))


def tokens(at_work: Recycled, token: int) -> list[int]:
    return [after for after, _ in at_work._row(token)]


def told(
    tokens: tuple[int, ...], rows: list[int], parents: list[int], accepted: tuple[int, ...], tops: list[list[int]]
) -> Verified:
    chances = np.tile(np.asarray(CHANCES, dtype=np.float32), (len(rows), 1))
    every = (*accepted, *(row for row in range(len(rows)) if row not in accepted))
    tops_of = np.asarray(tops)[list(every)]
    return Verified(tokens, np.asarray(rows), np.asarray(parents), accepted, every, tops_of, chances)


def named(first: int) -> list[int]:
    return [first + i for i in range(8)]


def test_the_tree_follows_the_likeliest_paths() -> None:
    at_work = start(7)
    assert len(at_work.propose(Budget(9, 4))) == 0, "an empty table proposes nothing"
    at_work.observe(told((10,), [7], [-1], (0,), [named(10)]))
    at_work.observe(told((20, 10), [10, 20], [-1, 0], (0, 1), [named(20), named(10)]))
    draft = at_work.propose(Budget(6, 3))
    # the anchor is 10, after which the model named 20, 21, ...; after 20 it named 10, 11, ...
    assert draft.tokens.tolist() == [20, 21, 22, 10, 23, 24] and draft.parents.tolist() == [-1, -1, -1, 0, -1, -1]
    np.testing.assert_allclose(draft.values, [0.3, 0.2, 0.1, 0.09, 0.09, 0.08], rtol=1e-6)
    assert at_work.propose(Budget(40, 1)).parents.tolist() == [-1] * 8


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.integers(1, 30), st.integers(1, 6))
def test_no_path_that_is_left_out_is_likelier_than_one_that_is_proposed(seed: int, nodes: int, depth: int) -> None:
    """Against every path there is, worked out one by one."""
    draw = np.random.default_rng(seed)
    chances = np.sort(draw.dirichlet(np.ones(3), VOCAB).astype(np.float32))[:, ::-1]
    prior = Successors(draw.integers(0, 6, (VOCAB, 3)).astype(np.int32), np.ascontiguousarray(chances))
    found = start(4, prior=prior).propose(Budget(nodes, depth))
    every, level = [], [(4, 1.0)]
    for _ in range(depth):
        level = [
            (int(prior.tokens[token, rank]), value * float(prior.chances[token, rank]))
            for token, value in level
            for rank in range(3)
        ]
        every += [value for _, value in level]
    np.testing.assert_allclose(found.values, sorted(every, reverse=True)[:nodes], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.integers(1, 90), st.integers(1, 7))
def test_the_template_is_filled_by_rank_whatever_the_chances(seed: int, nodes: int, depth: int) -> None:
    """Against a look at the table for each of its places, one by one."""
    draw = np.random.default_rng(seed)
    chances = np.sort(draw.dirichlet(np.ones(9), 6).astype(np.float32))[:, ::-1]
    prior = Successors(
        draw.permuted(np.tile(np.arange(9), (6, 1)), axis=1).astype(np.int32), np.ascontiguousarray(chances)
    )
    found = start(4, prior=prior, growth="template").propose(Budget(nodes, depth))
    expected: dict[tuple[int, ...], float] = {}
    for path in [path for path in _TEMPLATE if len(path) <= min(depth, 6)][:nodes]:
        token, value, said = 4, 1.0, list[int]()
        for rank in path:
            if token >= 6:
                break  # of these the table knows nothing, and nothing stands below them
            value *= float(prior.chances[token, rank])
            token = int(prior.tokens[token, rank])
            said.append(token)
        else:
            expected[tuple(said)] = value
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(found.tokens.tolist(), found.parents.tolist(), strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    assert dict(zip(paths, found.values.tolist(), strict=True)) == pytest.approx(expected) and len(paths) == len(
        expected
    )


def test_rejected_rows_teach_too_and_the_text_as_it_is_has_the_last_word() -> None:
    at_work = start(7)
    rows, parents = [7, 30, 7, 31], [-1, 0, 1, 2]  # token 7 stands in the accepted and in a rejected row
    at_work.observe(told((9,), rows, parents, (0,), [named(9), named(1), named(40), named(2)]))
    assert tokens(at_work, 30) == named(1) and tokens(at_work, 31) == named(2)
    assert tokens(at_work, 7)[:3] == [9, 40, 10], "told last, and what was said before counts half"
    assert tokens(at_work, 7).index(40) > tokens(at_work, 7).index(9)


def test_what_a_token_was_followed_by_counts_less_the_longer_ago_it_was_said() -> None:
    at_work = start(7)
    at_work.observe(told((9,), [7], [-1], (0,), [[1, *range(20, 27)]]))
    for _ in range(3):
        at_work.observe(told((9,), [7], [-1], (0,), [[2, *range(30, 37)]]))
    chance = dict(at_work._row(7))
    assert np.isclose(chance[2], 0.3 * (1 - 1 / 8)) and np.isclose(chance[1], 0.3 / 8)
    assert len(chance) == 16 and list(chance.values()) == sorted(chance.values(), reverse=True)


def test_the_anchor_is_the_latest_token_after_a_round_without_drafts_too() -> None:
    at_work = start(7)
    at_work.observe(told((10,), [7], [-1], (0,), [named(10)]))
    at_work.observe(Verified((7,), np.asarray([10]), np.asarray([-1]), (0,)))
    assert at_work.propose(Budget(1, 1)).tokens.tolist() == [10]


PRIOR = Successors(
    np.asarray([[8, 9], [3, 4], [5, 6]], dtype=np.int32), np.asarray([[0.6, 0.1], [0.5, 0.2], [0.9, 0.05]], np.float32)
)


def test_the_prior_is_guessed_from_before_anything_was_seen_and_gives_way_to_what_is() -> None:
    at_work = start(30, 1, prior=PRIOR)
    assert at_work.propose(Budget(3, 2)).tokens.tolist() == [3, 4]
    at_work.observe(told((1,), [1], [-1], (0,), [[4, 3, *range(10, 16)]]))
    assert tokens(at_work, 1)[:2] == [3, 4] and np.isclose(dict(at_work._row(1))[4], 0.1 + 0.15)
    at_work.observe(told((1,), [1], [-1], (0,), [[4, 3, *range(10, 16)]]))
    assert tokens(at_work, 1)[0] == 4
    assert PRIOR.tokens.tolist() == [[8, 9], [3, 4], [5, 6]], "it is shared, and stays as it is"


def test_the_prior_can_be_left_out_and_is_then_not_asked_for() -> None:
    def never(further: bool) -> Successors:
        raise AssertionError

    source = DraftSource(np.asarray([1], dtype=np.int32), VOCAB, successors=never)
    assert len(Recycling(prior=False).begin(source).propose(Budget(4, 2))) == 0
    assert len(start(40, prior=PRIOR).propose(Budget(4, 2))) == 0, "of this token it knows nothing"


def test_the_model_is_asked_further_once_the_answer_is_long_and_what_it_says_is_used() -> None:
    asked: list[bool] = []
    few = Successors(PRIOR.tokens[:1], PRIOR.chances[:1])

    def told_of(further: bool) -> Successors:
        asked.append(further)
        return PRIOR if further else few

    at_work = Recycling().begin(DraftSource(np.asarray([1], dtype=np.int32), VOCAB, successors=told_of))
    for new in range(15):
        assert len(at_work.propose(Budget(3, 2))) == 0 and asked == [False], f"an answer of {new} tokens is short"
        at_work.observe(told((1,), [40], [-1], (0,), [named(10)]))
    at_work.observe(told((1,), [40], [-1], (0,), [named(10)]))
    assert at_work.propose(Budget(3, 2)).tokens.tolist() == [3, 4], "looked up before in vain, and found now"
    assert asked == [False, True]
    at_work.observe(told((2,), [40], [-1], (0,), [named(10)]))
    assert at_work.propose(Budget(2, 1)).tokens.tolist() == [5, 6] and asked == [False, True], "once"


def test_where_asking_fails_the_next_round_asks_again() -> None:
    asked: list[bool] = []

    def told_of(further: bool) -> Successors:
        asked.append(further)
        if len(asked) == 2:
            raise RuntimeError("no memory")
        return PRIOR

    at_work = Recycling().begin(DraftSource(np.asarray([1], dtype=np.int32), VOCAB, successors=told_of))
    for _ in range(16):
        at_work.observe(told((1,), [40], [-1], (0,), [named(10)]))
    with pytest.raises(RuntimeError):
        at_work.propose(Budget(3, 2))
    assert at_work.propose(Budget(3, 2)).tokens.tolist() == [3, 4] and asked == [False, True, True]


def test_a_rejected_row_of_numbers_that_are_none_is_not_learned_from() -> None:
    at_work = start(7)
    row = told((9,), [7, 30], [-1, 0], (0,), [named(9), named(1)])
    assert row.chances is not None
    row.chances[1] = np.nan
    at_work.observe(row)
    assert tokens(at_work, 30) == [] and np.isfinite(at_work.propose(Budget(9, 3)).values).all()
