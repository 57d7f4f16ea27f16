"""How long a piece of work takes on this processor, for choices that no list of its instructions can make.

Owns the clock. Knows nothing of what it times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

_TRIES = 5
_SOON = 2  # tries after which it shows that a way is none of the fastest
_HOPELESS = 3.0  # times what the fastest takes: such a way is tried no further
_LEAST = 0.01  # seconds of trying: less could lie within one interruption
_CALM = 0.8  # of the time that passes: as much a thread works that waits for no processor and for no other thread
_MOMENT = 0.03  # seconds: several turns of programs that share a processor
_SIDE = 256  # of a matrix that all threads multiply
_FASTER = 1.2  # how many times as fast another way must be: it rounds otherwise, or has a cost of its own


Made = TypeVar("Made")


def calmly(work: Callable[[], Made]) -> tuple[Made, bool]:
    """What ``work`` makes, and whether this thread had a processor nearly all the time that took.

    Where other programs want the same processors, threads wait for one another, and the fastest way is one by chance.
    """
    started, own = time.perf_counter(), time.thread_time()
    made = work()
    return made, time.thread_time() - own >= _CALM * (time.perf_counter() - started)


def at_rest() -> bool:
    """Whether this thread has a processor nearly all of a moment in which all threads multiply, as ``calmly`` says."""
    square = torch.ones(_SIDE, _SIDE, dtype=torch.float32, device="cpu")

    def work() -> None:
        started = time.perf_counter()
        while time.perf_counter() - started < _MOMENT:
            square @ square

    square @ square  # the first product may have to start the threads
    return calmly(work)[1]


def seconds(work: Callable[[], object]) -> float:
    """The best of several tries, behind one that is not timed: the first makes what the others find."""
    work()
    taken = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def faster(other: Callable[[], object], usual: Callable[[], object]) -> bool:
    """Whether ``other`` is so much faster than the ``usual`` way that it is worth taking."""
    return _FASTER * seconds(other) < seconds(usual)


def fastest(works: Sequence[Callable[[], object]], margin: float) -> tuple[int, float]:
    """The place of the fastest of ``works``, the first of them unless another is ``margin`` times as fast; its seconds.

    They take turns, so that what else the machine does meets all of them. The best of several tries counts. One that
    after some tries is far behind is tried no further: it would take most of the time.
    """
    taken: list[list[float]] = [[] for _ in works]
    best, rounds = [0.0] * len(works), 0
    while rounds <= _TRIES or sum(sum(own[1:]) for own in taken) < _LEAST:
        for own, work, its in zip(taken, works, best, strict=True):
            if rounds > _SOON and its > _HOPELESS * min(best):
                continue
            started = time.perf_counter()
            work()
            own.append(time.perf_counter() - started)
        rounds += 1
        best = [min(own[1:] or own) for own in taken]
    least = min(range(len(works)), key=best.__getitem__)
    found = least if margin * best[least] < best[0] else 0
    return found, best[found]
