"""What the clock of trials says: the fastest of several works, and whether the machine was busy."""

from __future__ import annotations

import time

import pytest

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
