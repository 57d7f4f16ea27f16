"""How often claims of drafters come true: learned by kind, also of what was not verified, and handed on where never."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from longctx.decoding.claims import Acceptance, Refuted
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


@pytest.mark.parametrize("sure", [0.35, 0.55, 0.75])
def test_a_claim_that_never_came_true_is_doubted_in_later_requests_until_its_first_hit(sure: float) -> None:
    refuted = Refuted()
    assert chances(refuted, sure, [2] * 3)[0] == pytest.approx(sure) and not refuted, "three may be bad luck"
    chances(refuted, sure, [2] * 15)
    assert len(refuted) == 1 and chances(refuted, sure, [])[0] < 0.4 * sure
    assert chances(refuted, 0.95, [])[0] == pytest.approx(0.95), "of other claims nothing is known"
    for misses in (1, 4, 15):
        chances(refuted, sure, [2] * misses)
        assert len(refuted) == 1, "still never right"
    cleared = chances(refuted, sure, [1, 1, 2])
    assert cleared[1:] == chances(Refuted(), sure, [1, 1, 2])[1:], "with a hit the doubt is gone"
    assert not refuted and chances(refuted, sure, [])[0] == pytest.approx(sure)


def test_what_a_request_found_itself_does_not_end_with_a_doubt() -> None:
    refuted = Refuted()
    chances(refuted, 0.75, [2] * 9)
    found = chances(refuted, 0.75, [*[2] * 30, 1])[-1]
    assert found == chances(Refuted(), 0.75, [*[2] * 30, 1])[-1] < 0.1


def test_a_claim_that_is_too_high_but_sometimes_right_is_not_doubted_in_later_requests() -> None:
    refuted = Refuted()
    chances(refuted, 0.75, [1, 2, 2, 2] * 10)
    assert not refuted
    chances(refuted, 0.75, [1, *[2] * 60])
    assert refuted, "once, and never since"


def test_only_what_is_judged_in_every_round_is_doubted() -> None:
    """A second token is judged where the first was right: never, where nothing is verified for its sake."""
    refuted, tree = Refuted(), merge([Draft.chain([1, 1], [0.55, 0.55 * 0.75])], 9, 9)
    acceptance = Acceptance(refuted)
    for _ in range(12):
        acceptance.learn(tree, [1, 2])
    assert not refuted
    chances(refuted, 0.75, [2] * 9)
    assert len(refuted) == 1
    first, second = Acceptance(refuted).reach(tree).values
    assert first == pytest.approx(0.55) and second == pytest.approx(0.55 * 0.75)


def test_a_request_that_says_nothing_new_leaves_what_another_found() -> None:
    refuted, tree = Refuted(), merge([Draft.chain([1], [0.75])], 9, 9)
    early = Acceptance(refuted)
    chances(refuted, 0.75, [2] * 9)
    assert early.reach(tree).values[0] == pytest.approx(0.75)
    early.learn(tree, [2])
    assert len(refuted) == 1
    assert not early.learn(tree, [1]), "no doubt of its own"
    assert not refuted


def test_hits_are_expected_by_each_claim_for_itself() -> None:
    """Claims of one bin may be as far apart as 0.01 and 0.09; a tenth of what is expected is not next to never."""
    tree, refuted = tree_of(range(2), [-1, -1], [0.01, 0.09]), Refuted()
    acceptance = Acceptance(refuted)
    for number in range(400):
        acceptance.learn(tree, [1 if number % 40 == 0 else 7])
    assert not refuted
