"""Which units are read together: the runs that go through the model as one segment."""

from __future__ import annotations

from collections.abc import Sequence

from longctx.types import Unit


def group(units: Sequence[Unit], limit_tokens: int) -> list[tuple[int, int]]:
    """Consecutive units of one document in half-open runs of at most ``limit_tokens`` tokens, one unit at least."""
    runs: list[tuple[int, int]] = []
    first, size = 0, 0
    for i, unit in enumerate(units):
        if i > first and (size + unit.tokens > limit_tokens or unit.document != units[i - 1].document):
            runs.append((first, i))
            first, size = i, 0
        size += unit.tokens
    if units:
        runs.append((first, len(units)))
    return runs
