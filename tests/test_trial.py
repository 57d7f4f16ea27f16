"""What the clock of trials says: the fastest of several works, and whether the machine was busy."""

from __future__ import annotations

import time

import pytest
import torch

from longctx.backend import trial


@pytest.mark.parametrize(
    ("seconds", "margin", "expected"),
    [((2.0, 1.0, 3.0), 1.1, 1), ((1.05, 1.0), 1.1, 0), ((1.0, 2.0), 1.1, 0), ((1.2, 1.1, 1.0), 1.1, 2)],
)
def test_the_fastest_must_win_by_a_margin_over_the_first(
    seconds: tuple[float, ...], margin: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(trial.time, "perf_counter", lambda: now[0])

    def work(own: float) -> None:
        now[0] += own

    place, best = trial.fastest([lambda own=own: work(own) for own in seconds], margin)
    assert place == expected and best == pytest.approx(seconds[expected])


def test_short_works_are_tried_for_longer_than_an_interruption_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], [0, 0]
    monkeypatch.setattr(trial.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(trial, "_LEAST", 0.01)

    def work(own: int) -> None:
        calls[own] += 1
        now[0] += 0.0004 if calls[own] < 9 else 0.0001 * (2 - own)  # the first eight times something else goes on

    place, best = trial.fastest([lambda: work(0), lambda: work(1)], 1.1)
    assert (place, best) == (1, pytest.approx(0.0001)) and calls[0] == calls[1] > 15


def test_a_thread_that_waits_is_not_calm() -> None:
    made, calm = trial.calmly(lambda: time.sleep(0.05) or 7)
    assert made == 7 and not calm


@pytest.mark.parametrize(("own", "rests"), [(1.0, True), (0.81, True), (0.79, False), (0.5, False)])
def test_a_machine_that_lends_its_processors_to_others_is_not_at_rest(
    own: float, rests: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``own`` is the share of the time that the thread has one while all threads multiply."""
    now, multiplied, product = [0.0], [0], torch.Tensor.__matmul__

    def multiply(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        multiplied[0] += 1
        now[0] += 1e-3
        assert one.numel() >= 2**16, "a product that one thread makes alone says nothing of the others"
        return product(one, other)

    monkeypatch.setattr(torch.Tensor, "__matmul__", multiply)
    monkeypatch.setattr(trial.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(trial.time, "thread_time", lambda: own * now[0])
    assert trial.at_rest() is rests
    assert now[0] >= trial._MOMENT and multiplied[0] > 10


def test_a_way_that_is_far_behind_is_tried_no_further_and_one_that_was_interrupted_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, calls = [0.0], [0, 0, 0]
    monkeypatch.setattr(trial.time, "perf_counter", lambda: now[0])

    def work(own: int, seconds: float) -> None:
        calls[own] += 1
        now[0] += 9.0 if own == 1 and calls[own] < 3 else seconds  # the second is interrupted in its first two tries

    ways = [lambda own=own, seconds=seconds: work(own, seconds) for own, seconds in enumerate((3.1, 0.8, 1.0))]
    place, best = trial.fastest(ways, 1.1)
    assert (place, best) == (1, pytest.approx(0.8)) and calls == [3, 6, 6]
    now[0], calls[:] = 0.0, [0, 0, 0]
    place, best = trial.fastest(ways[:2], 1.1)
    assert place == 1 and calls[:2] == [3, 6]
