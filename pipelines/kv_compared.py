"""What rows of ``longctx bench kv`` are held against: a policy beside the full cache, a speed beside another.

Owns which rows are compared: those of questions that both answered, of rounds or repeats that took turns. Knows no
table and no picture.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .paired import interval
from .rows import Row


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of differences, and where 95 % say that it lies."""

    mean: float
    low: float
    high: float


_NONE = Interval(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Loss:
    """What a policy lost beside the full cache on ``questions`` that both answered.

    ``score`` and ``lost`` are in points, ``loss`` in nats a token, ``share`` and ``same`` of 1. Without a question all
    of them are 0.
    """

    policy: str
    questions: int
    refused: int
    share: float = 0.0
    lookup_bytes: float = 0.0
    score: float = 0.0
    lost: Interval = _NONE
    loss: Interval = _NONE
    same: float = 0.0


def losses(rows: Sequence[Row]) -> list[Loss]:
    """One for each policy, in the order of the rows."""
    answered = {
        policy: {_asked(row): row for row in own if "score" in row} for policy, own in by(rows, "policy").items()
    }
    return [_loss(policy, own, answered.get("full", {}), rows) for policy, own in answered.items()]


def _loss(policy: str, own: dict[tuple[str, str], Row], full: dict[tuple[str, str], Row], rows: Sequence[Row]) -> Loss:
    both = [key for key in own if key in full]
    refused = sum(row["policy"] == policy and "score" not in row for row in rows)
    if not both:
        return Loss(policy, 0, refused)
    scores, whole = ([100 * group[key]["score"] for key in both] for group in (own, full))
    found, documents = [own[key]["loss"] for key in both], [document for document, _ in both]
    return Loss(
        policy,
        len(both),
        refused,
        mean(own[key]["read_share"] for key in both),
        mean(own[key]["lookup_bytes"] for key in both),
        mean(scores),
        _between(whole, scores, documents),
        _between(found, [0.0] * len(found), documents),
        sum(own[key]["same"] for key in both) / len(both),
    )


def reading(own: Sequence[Row], stock: Sequence[Row]) -> float | None:
    """How many times as fast as stock a text was read: the median over the rounds that both have; None for none."""
    rates = {row["round"]: row["prefill_tokens_per_second"] for row in stock}
    ratios = [row["prefill_tokens_per_second"] / rates[row["round"]] for row in own if row["round"] in rates]
    return statistics.median(ratios) if ratios else None


def times(row: Row, other: Row | None) -> float | None:
    """The median over the repeats, which took turns, of how many times as fast one is; None where they did not."""
    if other is None or _turns(row) != _turns(other):
        return None
    pairs = zip(row["tokens_per_second"], other["tokens_per_second"], strict=True)
    return float(statistics.median(one / two for one, two in pairs))


def by(rows: Sequence[Row], name: str) -> dict[str, list[Row]]:
    """Rows in groups of one value of ``name``, in the order of the rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return found


def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _turns(row: Row) -> tuple[str | None, int]:
    return row.get("turns"), len(row["tokens_per_second"])


def _asked(row: Row) -> tuple[str, str]:
    return row["document"], row["question"]


def _between(first: Sequence[float], second: Sequence[float], documents: Sequence[str]) -> Interval:
    low, high = interval(first, second, documents=documents)
    return Interval(mean(a - b for a, b in zip(first, second, strict=True)), low, high)
