"""The one cut: within the budget by the real tokenizer, in order, stable, verbatim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.backend.tokens import Tokens
from longctx.cut import SEPARATOR, cut, fill, joined, profile, reading_order
from longctx.types import Document, Page, SelectedSpan, Unit

TOKENS = Tokens(tiny.tokenizer("base"))
PIECES = (
    "The answer",
    " is in",
    " the letter.",
    "\n",
    "\r\n",
    "\n\n",
    "你好。",
    "👍",
    " ",
    "room 7",
    "x" * 12,
    "e\u0301",
)


def count(text: str) -> int:
    return len(TOKENS.plain(text))


def units_of(documents: list[Document], lengths: list[list[int]]) -> list[Unit]:
    """Units of about ``lengths`` tokens each that tile every document."""
    units: list[Unit] = []
    for number, (document, sizes) in enumerate(zip(documents, lengths, strict=True)):
        encoded = TOKENS.encode(document)
        edges = sorted(
            {0, len(document.text), *(int(encoded.token_starts[i % len(encoded.token_starts)]) for i in sizes)}
        )
        for start, end in zip(edges, edges[1:], strict=False):
            units.append(Unit(len(units), number, start, end, encoded.token_at(start), encoded.token_at(end)))
    return units


@st.composite
def cases(draw: Any) -> tuple[list[Document], list[Unit], np.ndarray, int]:
    texts = draw(
        st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=25).map("".join), min_size=1, max_size=3)
    )
    documents = [Document.from_text(text, id=f"d{i}") for i, text in enumerate(texts)]
    units = units_of(documents, [draw(st.lists(st.integers(0, 200), max_size=9)) for _ in documents])
    worth = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 1.0, 1e30])
    values = np.array(draw(st.lists(worth, min_size=len(units), max_size=len(units))), dtype=np.float32)
    return documents, units, values, draw(st.integers(1, 90))


@settings(max_examples=250, deadline=None)
@given(cases())
def test_what_is_kept_fits_stands_in_order_and_is_what_the_documents_say(case: Any) -> None:
    documents, units, values, budget = case
    spans, text, tokens = cut(documents, units, values, budget, count)
    assert tokens == count(text) <= budget
    places = [(int(span.document_id[1:]), span.start, span.end) for span in spans]
    assert places == sorted(places) and all(start < end for _, start, end in places)
    for (d, _, end), (e, start, _) in zip(places, places[1:], strict=False):
        assert (d, end) < (e, start), "touching spans are one span"
    assert (
        text == SEPARATOR.join(documents[d].text[a:b].strip("\r\n") for d, a, b in places) == joined(documents, spans)
    )
    for d, a, b in places:
        inside = [u for u in units if u.document == d and a <= u.start and u.end <= b]
        assert (inside[0].start, inside[-1].end) == (a, b)
        assert all(values[u.index] > -np.inf for u in inside)
    kept = {u.index for d, a, b in places for u in units if u.document == d and a <= u.start and u.end <= b}
    for span, (d, a, b) in zip(spans, places, strict=True):
        assert span.score == max(float(values[i]) for i in kept if units[i].document == d and a <= units[i].start < b)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_nothing_is_kept_only_when_no_unit_fits_by_itself(case: Any) -> None:
    documents, units, values, budget = case
    spans, _, _ = cut(documents, units, values, budget, count)
    alone = [
        unit
        for unit in units
        if values[unit.index] > -np.inf
        and unit.tokens <= budget
        and count(documents[unit.document].text[unit.start : unit.end].strip("\r\n")) <= budget
    ]
    assert bool(spans) == bool(alone)


def test_the_best_unit_that_reads_longer_alone_than_in_its_place_makes_room_for_the_next() -> None:
    """It left the cut empty-handed: the last unit standing was dropped and nothing took its place."""
    document = Document.from_text("abcdef")
    units = [Unit(0, 0, 0, 3, 0, 2), Unit(1, 0, 3, 6, 2, 4)]
    values = np.array([2.0, 1.0], dtype=np.float32)
    spans, text, tokens = cut([document], units, values, 2, lambda text: {"abc": 3, "def": 2}.get(text, 9))
    assert [(s.start, s.end) for s in spans] == [(3, 6)] and (text, tokens) == ("def", 2)


def test_ties_go_to_the_earlier_unit_whatever_the_sizes_before() -> None:
    assert fill(np.array([0, 1, 1, 0], dtype=np.float32), [1, 1, 1, 1], 3) == [0, 1, 2]
    values = np.random.default_rng(0).integers(0, 3, 5000).astype(np.float32)
    best = sorted(range(5000), key=lambda i: (-values[i], i))
    for budget in (1, 700, 2500, 4999):
        assert fill(values, [1] * 5000, budget) == sorted(best[:budget])


def test_a_unit_too_large_is_passed_over_and_later_smaller_ones_still_come_in() -> None:
    assert fill(np.array([3, 2, 1], dtype=np.float32), [8, 2, 2], 5) == [1, 2]


def test_units_at_minus_infinity_are_never_kept_even_with_room_to_spare() -> None:
    assert fill(np.array([-np.inf, -5, -np.inf], dtype=np.float32), [1, 1, 1], 100) == [1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 9)), max_size=20), st.integers(0, 40))
def test_filling_takes_the_best_first_as_the_obvious_loop_does(units: list[tuple[int, int]], budget: int) -> None:
    values = np.array([value for value, _ in units], dtype=np.float32)
    sizes = [size for _, size in units]
    used, expected = 0, []
    for value in range(3, -4, -1):
        for i, (own, size) in enumerate(units):
            if own == value and used + size <= budget:
                expected.append(i)
                used += size
    assert fill(values, sizes, budget) == sorted(expected)


def test_a_selector_that_returns_nan_is_caught() -> None:
    document = Document.from_text("abc")
    with pytest.raises(ValueError, match="NaN"):
        cut([document], [Unit(0, 0, 0, 3, 0, 3)], np.array([np.nan], dtype=np.float32), 9, count)


def test_spans_carry_the_page_they_begin_on_and_the_profile_every_unit() -> None:
    document = Document("d", "one two six", pages=(Page(4, 0, 4), Page(5, 4, 11)))
    units = [Unit(0, 0, 0, 4, 0, 1), Unit(1, 0, 4, 8, 1, 2), Unit(2, 0, 8, 11, 2, 3)]
    values = np.array([1, -np.inf, 2], dtype=np.float32)
    spans, text, _ = cut([document], units, values, 50, count)
    assert spans == (SelectedSpan("d", 0, 4, 4, 1.0), SelectedSpan("d", 8, 11, 5, 2.0))
    assert text == "one \n\nsix"
    shown = profile([document], units, values)
    assert [(s.start, s.end, s.score) for s in shown] == [(0, 4, 1.0), (4, 8, -np.inf), (8, 11, 2.0)]


@given(
    st.lists(st.sampled_from([-1.0, 0.0, 0.4, 0.5, 2.5, float("inf")]), max_size=8), st.sampled_from([0.0, 0.2, 1.0])
)
def test_the_strongest_span_is_read_last_and_the_others_above_the_floor_as_they_stand(
    scores: list[float], floor: float
) -> None:
    order = reading_order(
        [SelectedSpan("a", 2 * at, 2 * at + 1, None, score) for at, score in enumerate(scores)], floor
    )
    most = max(scores, default=0.0)
    bounded = floor > 0 and 0 < most < float("inf")
    assert sorted(order) == [at for at, score in enumerate(scores) if not bounded or score >= floor * most]
    assert list(order[:-1]) == sorted(order[:-1])
    if scores:
        assert scores[order[-1]] == most and most not in scores[order[-1] + 1 :]
