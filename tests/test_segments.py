"""Runs of units that are read together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from longctx.segments import group
from longctx.types import Unit


def units_of(sizes: list[tuple[int, int]]) -> list[Unit]:
    """Units of (document, tokens), one after the other."""
    made, at, document = [], 0, 0
    for i, (own, tokens) in enumerate(sorted(sizes, key=lambda pair: pair[0])):
        at = at if own == document else 0
        document = own
        made.append(Unit(i, own, at, at + tokens, at, at + tokens))
        at += tokens
    return made


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=40), st.integers(1, 40))
def test_runs_hold_every_unit_once_within_the_limit_and_one_document(sizes: list[tuple[int, int]], limit: int) -> None:
    units = units_of(sizes)
    runs = group(units, limit)
    assert [i for first, last in runs for i in range(first, last)] == list(range(len(units)))
    for first, last in runs:
        assert last > first
        assert len({unit.document for unit in units[first:last]}) == 1
        assert last - first == 1 or sum(unit.tokens for unit in units[first:last]) <= limit
    for (first, last), (_, end) in zip(runs, runs[1:], strict=False):
        same = units[last].document == units[first].document
        assert end > last
        assert not same or sum(u.tokens for u in units[first : last + 1]) > limit, "a run that could have been longer"


def test_a_unit_larger_than_the_limit_is_a_run_of_its_own() -> None:
    assert group(units_of([(0, 3), (0, 99), (0, 3), (0, 3)]), 10) == [(0, 1), (1, 2), (2, 4)]
    assert group([], 10) == []
