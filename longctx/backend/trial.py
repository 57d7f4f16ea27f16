"""How long a piece of work takes on this processor, for choices that no list of its instructions can make.

Owns the clock. Knows nothing of what it times.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_TRIES = 5
_FASTER = 1.2  # how many times as fast another way must be: it rounds otherwise, or has a cost of its own


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
