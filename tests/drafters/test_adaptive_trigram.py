"""ADED: the table's weights, and a search that finds the heaviest path and keeps its count."""

from __future__ import annotations

import numpy as np
import pytest

from longctx.drafters.adaptive_trigram import AdaptiveTrigram, Searching
from longctx.drafts import Budget, DraftSource, Verified


def start(*prompt: int) -> Searching:
    return AdaptiveTrigram(iterations=80).begin(DraftSource(np.asarray(prompt, dtype=np.int32), 50))


def told(at_work: Searching, *tokens: int) -> None:
    at_work.observe(Verified(tokens, np.asarray([0]), np.asarray([-1]), (0,)))


def test_the_most_visited_path_is_the_heaviest() -> None:
    often = [1, 2, 3, 4, 5, 6] * 5
    at_work = start(*often, 1, 2, 9, 9, *often, 1, 2)
    draft = at_work.propose(Budget(12, 4))
    path, node = [], -1
    for _ in range(4):
        node = next(i for i, parent in enumerate(draft.parents.tolist()) if parent == node)
        path.append(int(draft.tokens[node]))
    assert path == [3, 4, 5, 6]
    assert 9 in draft.tokens, "what was seldom is tried as well"


def test_what_the_answer_repeats_gains_weight_up_to_a_limit() -> None:
    at_work = start(1, 2, 3)
    told(at_work, 7, 8, 9)
    weight = at_work._table[7, 8][9]
    assert weight == pytest.approx(0.04)
    told(at_work, 5)
    assert at_work._table[7, 8][9] == pytest.approx(0.08), "again while it stands in the window"
    for _ in range(200):
        told(at_work, 7, 8, 9)
    assert at_work._table[7, 8][9] == 3.0


def test_a_pair_keeps_its_heaviest_successors_only() -> None:
    at_work = start(1, 2, 3)
    for token in range(10, 40):
        told(at_work, 4, 5, token)
    assert len(at_work._table[4, 5]) <= 12


def test_nothing_is_searched_after_a_pair_that_never_stood() -> None:
    assert len(start(1, 2, 3).propose(Budget(9, 4))) == 0
