"""What passes are taken to cost: learned from every one, bounded where some were disturbed."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from longctx.decoding.costs import RowCosts


def test_one_disturbed_pass_changes_little() -> None:
    costs = RowCosts()
    for _ in range(20):
        costs.add(1, 1.0)
        costs.add(16, 1.2)
    costs.add(16, 60.0)
    assert costs.seconds(16) < 3.0 and costs.seconds(13) == costs.seconds(16)
    assert costs.seconds(24) > costs.seconds(16) > costs.seconds(1) == 1.0
    for _ in range(60):
        costs.add(16, 5.0)
    assert costs.seconds(16) == pytest.approx(5.0, rel=0.05), "a lasting change is learned"


def test_a_context_that_was_not_measured_costs_what_the_nearest_does_in_proportion_to_its_first_pass() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        costs, held = RowCosts(), {}
        for power in rng.permutation(12)[:4].tolist():
            seconds = float(rng.uniform(1, 3))
            ratio = seconds / held[min(held, key=lambda p: (abs(p - power), p))] if held else 1.0  # noqa: B023
            costs.add(1, seconds, 2**power)
            if not held:
                costs.add(16, 1.5 * seconds, 2**power)
            held[power] = seconds
            assert costs.seconds(16, 2**power + 2**power // 3) == pytest.approx(1.5 * seconds), ratio
        for context in (0, 1, 3, 100, 5000, 10**6):
            nearest = min(held, key=lambda p: (abs(p + 1 - context.bit_length()), p))  # noqa: B023
            assert costs.seconds(1, context) == pytest.approx(held[nearest])
        here = rng.choice(list(held))
        costs.add(1, held[here] + 1, 2 ** int(here))
        for power, seconds in held.items():
            assert (costs.seconds(1, 2**power) == pytest.approx(seconds)) == (power != here), "others are as they were"


def test_a_cost_that_keeps_drafts_away_is_forgotten_and_learned_anew_at_once() -> None:
    costs = RowCosts()
    costs.renew(1.0)
    costs.add(16, 50.0)
    before = [costs.seconds(16)]
    for _ in range(120):
        costs.renew(1.0)
        before.append(costs.seconds(16))
    assert before == sorted(before, reverse=True) and before[-1] < 1.5
    costs.add(16, 50.0)
    assert costs.seconds(16) > 25, "half of it, not the fortieth that a pass out of line counts for"
    costs.add(16, 90.0)
    assert costs.seconds(16) < 45
    costs.add(8, 0.4)
    costs.renew(3.0)
    assert costs.seconds(8) == costs.seconds(1) == 3.0, "no more rows are cheaper than one"


def test_a_disturbed_pass_of_one_row_makes_no_others_free() -> None:
    costs = RowCosts()
    costs.renew(70.0)
    assert costs.seconds(2) > 70.0
    costs.add(2, 47.0)
    assert costs.seconds(1) == costs.seconds(2) == 47.0, "one row takes no longer than two"
    costs.add(8, 80.0)
    assert costs.seconds(1) == 47.0 and costs.seconds(8) == 80.0
    for _ in range(12):
        costs.add(1, 43.0)
    assert 43.0 < costs.seconds(1) < 44.0 and costs.seconds(2) == 47.0


def test_what_disturbed_a_first_pass_goes_out_again_with_the_next() -> None:
    costs = RowCosts()
    costs.renew(47.0)
    costs.add(16, 60.0)
    for _ in range(5):
        costs.renew(70.0)
        for _ in range(10):
            costs.add(2, 48.0)
        costs.renew(47.0)
    assert costs.seconds(16) == pytest.approx(60.0, rel=0.05) and costs.seconds(1) == 47.0


def test_requests_of_several_threads_may_learn_costs_together() -> None:
    costs, failed = RowCosts(), []

    def learn(first: int) -> None:
        try:
            for step in range(3000):
                costs.renew(1.0, first + 37 * step % 5000)
                costs.add(1 + step % 64, 1.0 + step % 7, first + 91 * step % 70_000)
                assert costs.seconds(1 + step % 40, step) > 0
        except (RuntimeError, KeyError, ZeroDivisionError) as error:
            failed.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=learn, args=(first,)) for first in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not failed
