"""From ``budget=`` or ``keep=`` to a count of slots per KV head: the one place where a share becomes a number."""

from __future__ import annotations

import math

from longctx.errors import BadOption

KEEP = 0.125  # of the context, where neither is given
LEAST = 512  # slots that are read then at least: below it a choice saves nothing


def check(budget: int | None, keep: float | None, name: str) -> None:
    """Raises BadOption where both are given or one is no budget: when a policy is made, not at its first context."""
    if budget is not None and keep is not None:
        raise BadOption(f"{name}: budget={budget} and keep={keep} say the same thing. Give one of them.")
    if keep is not None and not 0 < keep <= 1:
        raise BadOption(f"{name}: keep={keep} is no share of the context. Give a number above 0 and at most 1.")
    if budget is not None and budget < 1:
        raise BadOption(f"{name}: budget={budget} must be at least 1.")


def slots(tokens: int, budget: int | None, keep: float | None, forced: int, name: str) -> int:
    """Slots that a KV head reads of ``tokens``; of them ``forced`` are always the same (the first and the last).

    Raises BadOption where a context that is longer leaves no choice.
    """
    count = budget
    if count is None:
        count = max(LEAST, math.ceil(KEEP * tokens)) if keep is None else math.ceil(keep * tokens)
    if count < min(forced + 1, tokens):
        raise BadOption(
            f"{name}: a budget of {count} slots of {tokens} is not above the {forced} that are always read (sinks and "
            f"recent). Raise it, or lower those."
        )
    return min(count, tokens)
