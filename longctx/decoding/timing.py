"""How long a pass of so many rows takes behind what a target holds, found by passes that commit nothing.

Owns the rows that are timed. Knows the model by its protocol.
"""

from __future__ import annotations

import time

from longctx.protocols import Target

_TRIES = 2  # the first may make what the second finds


def seconds_of(target: Target, anchor: int, rows: int) -> float:
    """Seconds of a pass of ``rows`` behind the cache of ``target``, which verifies trees; it is as it was afterwards.

    ``anchor`` is any token of the model.
    """
    parents = [-1, *((row - 1) // 2 for row in range(1, rows))]
    taken = []
    for _ in range(_TRIES):
        with target.turn():
            started = time.perf_counter()
            int(target.score([anchor] * rows, parents, rows).argmax())  # a device is done once a number of it is read
            taken.append(time.perf_counter() - started)
        target.rollback()
    return min(taken)
