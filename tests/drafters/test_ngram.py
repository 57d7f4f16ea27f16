"""STAND: running means of laws, backing off to shorter contexts, and draws that the residual rule may trust."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from longctx import plugins
from longctx.drafters import ngram
from longctx.drafters.ngram import Laws, Ngram
from longctx.drafts import Budget, Draft, DraftSource, Verified
from longctx.errors import BadOption

ROW = (np.asarray([2]), np.asarray([-1]), (0,))  # a pass of the anchor alone


def start(*prompt: int, **options: Any) -> Laws:
    return Ngram(**options).begin(DraftSource(np.asarray(prompt, dtype=np.int32), 50))


def told(at_work: Laws, anchor: int, law: dict[int, float], after: int) -> None:
    tops, chances = np.asarray([list(law)]), np.asarray([list(law.values())], dtype=np.float32)
    at_work.observe(Verified((after,), np.asarray([anchor]), np.asarray([-1]), (0,), (0,), tops, chances))


def test_laws_are_running_means_over_the_tokens_of_both() -> None:
    at_work = start(1, 2)
    told(at_work, 2, {10: 0.7, 11: 0.2, 12: 0.05}, after=2)
    told(at_work, 2, {10: 0.3, 11: 0.6, 13: 0.05}, after=3)
    law = at_work.law([9, 2])
    trust = law[10] / 0.5
    assert 0 < trust < 1
    assert {token: chance / trust for token, chance in law.items()} == pytest.approx(
        {10: 0.5, 11: 0.4, 12: 0.025, 13: 0.025}, abs=1e-6
    )


def test_a_rejected_row_of_numbers_that_are_none_is_not_learned_from() -> None:
    at_work = start(1, 2)
    told(at_work, 2, {10: 0.7, 11: 0.2}, after=2)
    before = at_work.law([9, 2])
    told(at_work, 2, {10: np.nan, 12: np.nan}, after=2)
    assert at_work.law([9, 2]) == before and np.isfinite(at_work.propose(Budget(9, 3)).values).all()


def test_the_longest_known_context_decides_and_is_trusted_most() -> None:
    at_work = start(1, 2, 3, 4)
    told(at_work, 4, {10: 0.9}, after=4)
    told(at_work, 4, {20: 0.9}, after=5)
    long, short = at_work.law([1, 2, 3, 4]), at_work.law([8, 9, 4])
    assert list(long) == [10] and set(short) == {10, 20} and sum(long.values()) > sum(short.values()) > 0
    assert at_work.law([7]) == {}


def test_rejected_rows_teach_their_own_paths() -> None:
    at_work = start(1, 2)
    rows, parents = np.asarray([2, 30, 31]), np.asarray([-1, 0, 1])
    tops, chances = np.asarray([[3], [4], [5]]), np.full((3, 1), 0.5, dtype=np.float32)
    at_work.observe(Verified((6,), rows, parents, (0,), (0, 1, 2), tops, chances))
    assert list(at_work.law([2, 30, 31])) == [5]
    assert at_work._history.tokens.tolist() == [1, 2, 6]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram, "_ENTRIES", 20)
    at_work = start(1)
    for step in range(50):
        told(at_work, step % 40, {step % 7: 0.5}, after=(step + 1) % 40)
    assert len(at_work._laws) <= 20 and at_work._seen.keys() == at_work._laws.keys()


def test_a_threshold_is_an_option_and_lies_between_0_and_1() -> None:
    trees = {}
    for least in (0.0, 0.9, 0.001):
        at_work = start(1, 2, growth="dyspec_threshold", least=least)
        told(at_work, 2, {3: 0.4, 4: 0.3, 5: 0.3}, after=2)
        trees[least] = len(at_work.propose(Budget(20, 3)))
    assert trees[0.9] == 0 < trees[0.0] <= trees[0.001] == 3
    with pytest.raises(BadOption, match="least=1.5 must lie in"):
        plugins.load("drafters", "ngram:growth=dyspec_threshold,least=1.5")


@pytest.mark.parametrize("growth", ["shaped", "rsd_c", "rsd_s", "dyspec", "dyspec_threshold"])
def test_a_drawn_tree_has_a_draw_for_every_node_and_is_another_one_every_round(growth: str) -> None:
    at_work = start(1, 2, growth=growth)
    for _ in range(2):
        told(at_work, 2, {3: 0.4, 4: 0.3, 5: 0.3}, after=2)
    trees = []
    for _ in range(6):
        draft = at_work.propose(Budget(20, 3))
        assert sorted(draw.node for draw in draft.draws) == list(range(len(draft)))
        trees.append(tuple(draft.tokens.tolist()))
        told(at_work, 2, {3: 0.4, 4: 0.3, 5: 0.3}, after=2)
    assert len(set(trees)) > 1


def anchor_children(draft: Draft) -> list[int]:
    return [t for t, parent in zip(draft.tokens.tolist(), draft.parents.tolist(), strict=True) if parent < 0]


def test_the_shape_of_a_shaped_tree_follows_what_was_right() -> None:
    def widths(right: int) -> list[int]:
        """How many children the anchor has in the last trees, where the draw of rank ``right`` came true before."""
        at_work, found = start(1, 2, growth="shaped"), []
        told(at_work, 2, {3: 0.4, 4: 0.3, 5: 0.3}, after=2)
        for _ in range(60):
            first = anchor_children(at_work.propose(Budget(3, 2)))
            found.append(len(first))
            at_work.observe(Verified((first[right] if right < len(first) else 49,), *ROW))
            at_work.observe(Verified((2,), *ROW))  # a round without drafts, which leads back to the known context
        return found[40:]

    assert set(widths(1)) == {2}, "where the second is right there are two"
    assert set(widths(0)) == {1}, "where the first is right the next is looked for behind it"


def test_a_round_is_judged_by_its_own_draft_once() -> None:
    at_work = start(1, 2, growth="shaped")
    told(at_work, 2, {3: 0.4, 4: 0.3, 5: 0.3}, after=2)
    before = at_work._rates._tries.copy()
    at_work.propose(Budget(3, 2))
    first = anchor_children(at_work.propose(Budget(3, 1)))  # the round before it failed, and was drafted for again
    at_work.observe(Verified((first[0],), *ROW))
    once = at_work._rates._tries - before
    assert once[0].tolist() == [1] * len(first) + [0] * (10 - len(first)) and not once[1:].any()
    at_work.observe(Verified((first[0],), *ROW))
    assert (at_work._rates._tries - before == once).all(), "a round that was not drafted for judges nothing"
