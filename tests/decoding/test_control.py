"""How often claims of drafters come true: learned by kind, also of what was not verified, and handed on where never."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from longctx.decoding.control import Acceptance, Refuted
from longctx.decoding.tree import TokenTree, merge
from longctx.drafts import Draft


def tree_of(tokens: Sequence[int], parents: Sequence[int], values: Sequence[float]) -> TokenTree:
    return merge([Draft(np.asarray(tokens), np.asarray(parents), np.asarray(values))], 9, 9)


def test_acceptance_is_learned_by_source_and_claim_also_of_nodes_that_were_not_verified() -> None:
    acceptance = Acceptance()
    tree = tree_of([1, 2, 3], [-1, -1, 0], [0.85, 0.15, 0.8])
    for _ in range(60):
        acceptance.learn(tree, [2, 5])  # the unlikely one is always right
    reached = acceptance.reach(tree)
    assert reached.values[1] > 0.8 > 0.2 > reached.values[0] > reached.values[2]
    other = merge([Draft.empty(), Draft.chain([1], [0.85])], 9, 9)  # another drafter that claims as much
    assert acceptance.reach(other).values[0] == pytest.approx(0.85)


def test_an_estimate_that_is_refuted_counts_for_nothing_soon_and_one_that_is_too_high_for_something() -> None:
    def after(hits: int, tries: int, sure: float) -> float:
        acceptance, tree = Acceptance(), merge([Draft.chain([1], [sure])], 9, 9)
        for number in range(tries):
            acceptance.learn(tree, [1 if number < hits else 2])
        return float(acceptance.reach(tree).values[0])

    assert after(0, 4, 0.75) < 0.06, "a chance of 0.004 that this happens"
    assert 0.03 < after(0, 4, 0.15) < 0.1, "half of the time this happens"
    assert 0.3 < after(2, 4, 0.75) < 0.65
    assert after(4, 4, 0.75) > after(3, 4, 0.75) > after(2, 4, 0.75) > after(1, 4, 0.75) > after(0, 4, 0.75)


def test_a_child_is_judged_only_where_its_parent_was_right() -> None:
    acceptance = Acceptance()
    tree = tree_of([1, 2, 3], [-1, 0, 1], [0.9, 0.63, 0.3])
    for _ in range(60):
        acceptance.learn(tree, [7])
    reached = acceptance.reach(tree)
    assert reached.values[0] < 0.2
    assert reached.values[1] / reached.values[0] == pytest.approx(0.7, abs=1e-6), "nothing is known of it yet"


def test_claims_that_are_never_right_soon_count_for_nothing_and_other_claims_for_what_they_say() -> None:
    acceptance = Acceptance()
    wrong = tree_of(range(8), [-1] * 8, [0.55] * 8)
    for _ in range(10):
        acceptance.learn(wrong, [99])
    assert acceptance.reach(wrong).values.sum() < 0.05, "eight rows that win a twentieth of a token"
    assert acceptance.reach(tree_of([1], [-1], [0.95])).values[0] == pytest.approx(0.95)
    for _ in range(100):
        acceptance.learn(wrong, [0])
    assert acceptance.reach(wrong).values[0] == pytest.approx(1 / 8, abs=0.02), "it can be won back"


def chances(refuted: Refuted, sure: float, tokens: Sequence[int]) -> list[float]:
    """What a claim of ``sure`` for token 1 is taken for, before and after each of ``tokens``, in a new request."""
    acceptance, tree = Acceptance(refuted), merge([Draft.chain([1], [sure])], 9, 9)
    found = [float(acceptance.reach(tree).values[0])]
    for token in tokens:
        acceptance.learn(tree, [token])
        found.append(float(acceptance.reach(tree).values[0]))
    return found


def test_a_claim_that_was_never_right_is_doubted_in_later_requests_until_its_first_hit() -> None:
    refuted = Refuted()
    assert chances(refuted, 0.75, [2] * 3)[0] == pytest.approx(0.75) and not refuted, "three may be bad luck"
    chances(refuted, 0.75, [2] * 9)
    assert len(refuted) == 1 and chances(refuted, 0.75, [])[0] < 0.06
    assert chances(refuted, 0.95, [])[0] == pytest.approx(0.95), "of other claims nothing is known"
    chances(refuted, 0.75, [2])
    assert len(refuted) == 1, "still never right"
    cleared = chances(refuted, 0.75, [1, 1, 2])
    assert cleared[1:] == chances(Refuted(), 0.75, [1, 1, 2])[1:], "it begins anew"
    assert not refuted and chances(refuted, 0.75, [])[0] == pytest.approx(0.75)


def test_a_claim_that_is_too_high_but_sometimes_right_is_not_doubted_in_later_requests() -> None:
    refuted = Refuted()
    chances(refuted, 0.75, [1, 2, 2, 2] * 10)
    assert not refuted
    chances(refuted, 0.75, [1, *[2] * 60])
    assert refuted, "once, and never since"


def test_requests_at_the_same_time_do_not_disturb_each_other() -> None:
    refuted = Refuted()
    early = Acceptance(refuted)
    chances(refuted, 0.75, [2] * 9)
    assert early.reach(merge([Draft.chain([1], [0.75])], 9, 9)).values[0] == pytest.approx(0.75)
