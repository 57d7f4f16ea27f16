"""From ``budget=`` or ``keep=`` to a count of slots per KV head: the one place where a share becomes a number."""

from __future__ import annotations

import math

from longctx.errors import BadOption

KEEP = 0.125  # of the context, where neither is given
LEAST = 512  # slots that are read then at least: below it a choice saves nothing
_LONGEST = 2**62  # tokens: no context is longer, whatever the share


def check(budget: int | None, keep: float | None, name: str) -> None:
    """Raises BadOption where both are given or one is no budget: when a policy is made, not at its first context."""
    if budget is not None and keep is not None:
        raise BadOption(f"{name}: budget={budget} and keep={keep} say the same thing. Give one of them.")
    if keep is not None and not 0 < keep <= 1:
        raise BadOption(f"{name}: keep={keep} is no share of the context. Give a number above 0 and at most 1.")
    if budget is not None and budget < 1:
        raise BadOption(f"{name}: budget={budget} must be at least 1.")


def check_ends(sinks: int, recent: int, name: str) -> None:
    """Raises BadOption for less than no tokens that are always read."""
    if min(sinks, recent) < 0:
        raise BadOption(f"{name}: sinks={sinks} and recent={recent} must not be negative.")


def slots(
    tokens: int, budget: int | None, keep: float | None, forced: int, name: str, which: str = "sinks and recent"
) -> int:
    """Slots that a KV head reads of ``tokens``; of them ``forced`` are always read: ``which`` says what they are.

    All of them where a share leaves no choice, which ``shortfall`` says. Raises BadOption for a ``budget`` that leaves
    none.
    """
    count = _count(tokens, budget, keep)
    if count >= min(forced + 1, tokens):
        return min(count, tokens)
    if budget is None:
        return tokens
    raise BadOption(
        f"{name}: a budget of {count} slots of {tokens} is not above the {forced} that are always read ({which}). "
        f"Raise it, or lower those."
    )


def shortfall(
    tokens: int, budget: int | None, keep: float | None, forced: int, name: str, which: str = "sinks and recent"
) -> str:
    """Why a share of so short a context is no budget, and from which length on it is one; empty where it is one."""
    count = _count(tokens, budget, keep)
    if budget is not None or count >= min(forced + 1, tokens):
        return ""
    share = KEEP if keep is None else keep
    asked = f"keep={keep}" if keep is not None else f"the default (keep={KEEP}, at least {LEAST} slots)"
    return (
        f"{name}: {asked} is a budget of {count} slots of {tokens} tokens, not above the {forced} that are always read "
        f"({which}): all {tokens} are read. The share is worth it from {_worth(share, forced):,} tokens on."
    )


def _count(tokens: int, budget: int | None, keep: float | None) -> int:
    if budget is not None:
        return budget
    return max(LEAST, math.ceil(KEEP * tokens)) if keep is None else math.ceil(keep * tokens)


def _worth(share: float, forced: int) -> int:
    """The fewest tokens of which ``share`` is more than ``forced``, as ``_count`` rounds it."""
    near = int(min(forced / share, _LONGEST))
    return next((tokens for tokens in (near - 1, near, near + 1) if math.ceil(share * tokens) > forced), near + 2)
