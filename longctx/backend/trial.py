"""How long a piece of work takes on this processor, for choices that no list of its instructions can make.

Owns the clock. Knows nothing of what it times.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_TRIES = 5


def seconds(work: Callable[[], object]) -> float:
    """The best of several tries, behind one that is not timed: the first makes what the others find."""
    work()
    taken = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)
