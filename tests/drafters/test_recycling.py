"""Token Recycling: its table, its tree, and that what was named once is guessed the next time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from longctx.drafters.recycling import Recycled, Recycling
from longctx.drafts import Budget, DraftSource, Lead, Verified

VOCAB = 50


def start(*prompt: int) -> Recycled:
    return Recycling().begin(DraftSource(np.asarray(prompt, dtype=np.int32), VOCAB))


def told(
    tokens: tuple[int, ...], rows: list[int], parents: list[int], accepted: tuple[int, ...], tops: list[list[int]]
) -> Verified:
    chances = np.full((len(rows), 8), 0.1, dtype=np.float32)
    return Verified(tokens, np.asarray(rows), np.asarray(parents), accepted, np.asarray(tops), chances)


def named(first: int) -> list[int]:
    return [first + i for i in range(8)]


def test_the_tree_is_read_off_the_table_by_rank() -> None:
    at_work = start(7)
    assert len(at_work.propose(Budget(9, 4))) == 0, "an empty table proposes nothing"
    at_work.observe(told((10,), [7], [-1], (0,), [named(10)]))
    at_work.observe(told((20, 10), [10, 20], [-1, 0], (0, 1), [named(20), named(10)]))
    draft = at_work.propose(Budget(6, 3))
    # the anchor is 10, after which the model named 20, 21, ...; after 20 it named 10, 11, ...
    first = draft.tokens[draft.parents == -1].tolist()
    assert first == named(20)[: len(first)] and len(first) >= 2
    assert draft.tokens[draft.parents == 0].tolist()[0] == 10
    assert (np.diff(draft.values) <= 1e-12).all(), "likeliest first"


def test_rejected_rows_teach_too_and_the_text_as_it_is_has_the_last_word() -> None:
    at_work = start(7)
    rows, parents = [7, 30, 7, 31], [-1, 0, 1, 2]  # token 7 stands in the accepted and in a rejected row
    at_work.observe(told((9,), rows, parents, (0,), [named(9), named(1), named(40), named(2)]))
    table = at_work._table
    assert table[30].tolist() == named(1) and table[31].tolist() == named(2)
    assert table[7].tolist() == named(9)


def test_ranks_that_are_right_more_often_get_more_of_the_tree() -> None:
    at_work = start(7)
    for _ in range(60):  # the third name is always the right one
        at_work.observe(told((9,), [7], [-1], (0,), [[3, 4, 9, 5, 6, 8, 10, 11]]))
        at_work.observe(told((7,), [9], [-1], (0,), [[3, 4, 7, 5, 6, 8, 10, 11]]))
    assert at_work.propose(Budget(1, 1)).tokens.tolist() == [9]


def test_the_anchor_is_the_latest_token_after_a_round_without_drafts_too() -> None:
    at_work = start(7)
    at_work.observe(told((10,), [7], [-1], (0,), [named(10)]))
    at_work.observe(Verified((7,), np.asarray([10]), np.asarray([-1]), (0,)))
    assert at_work.propose(Budget(1, 1)).tokens.tolist() == [10]


def test_the_table_begins_with_what_was_said_of_the_prompt() -> None:
    at_work = start(3, 7, 5)
    chances = np.full((4, 8), 0.1, dtype=np.float32)
    tops = np.asarray([named(1), named(10), named(20), named(40)])
    first = told((7,), [5], [-1], (0,), [named(30)])
    at_work.observe(replace(first, lead=Lead(np.asarray([7, 3, 7, 99]), tops, chances)))  # 99 is no token
    table = at_work._table
    assert table[7].tolist() == named(20), "the latest of a token's rows"
    assert table[3].tolist() == named(10) and table[5].tolist() == named(30)
    assert at_work.propose(Budget(4, 1)).tokens.tolist() == named(20)[:4]
