"""InfiniRetri: the released scoring against a slow reading of it, and a default mode that no order disturbs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx import Document, Reader, plugins
from longctx.calibration import Calibration
from longctx.errors import BadOption
from longctx.segmenters.selectors._attention import fuse, heads_of, per_unit
from longctx.segmenters.selectors.infiniretri import InfiniRetri, paper_scores
from longctx.types import Inquiry, Reading, Unit

HEADS = ((0, 0), (0, 1), (1, 0), (1, 1))


def slow_scores(rows: np.ndarray, omega: np.ndarray, phrase: int) -> np.ndarray:
    """Token by token: the sum over rows of omega squared times the box j - 4 .. j + 3 (for 8), zero outside."""
    out = np.zeros(rows.shape[1])
    for j in range(rows.shape[1]):
        for i in range(rows.shape[0]):
            for k in range(j - phrase // 2, j - phrase // 2 + phrase):
                if 0 <= k < rows.shape[1]:
                    out[j] += omega[i] ** 2 * rows[i, k]
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 30), st.integers(1, 10), st.integers(0, 10**6))
def test_token_scores_are_the_released_ones(rows: int, tokens: int, phrase: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    attention, omega = rng.random((rows, tokens)), rng.random(rows)
    np.testing.assert_allclose(
        paper_scores(attention, omega, phrase), slow_scores(attention, omega, phrase), atol=1e-10
    )


def test_the_even_box_leans_to_the_left() -> None:
    one = np.zeros((1, 20))
    one[0, 10] = 1.0
    assert np.flatnonzero(paper_scores(one, np.array([2.0]), 8)).tolist() == list(range(7, 15))
    assert paper_scores(one, np.array([2.0]), 8)[10] == pytest.approx(4.0)


class Scripted:
    """A model of two layers and two heads whose attention rows follow from the ids alone."""

    prefix = 3

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def pairs(self) -> tuple[tuple[int, int], ...]:
        return HEADS

    def inquiry(self, question: str, heads: Any = (), through_cue: bool = False, keep_rows: bool = False) -> Inquiry:
        assert heads == ((1, 0), (1, 1)) and through_cue and keep_rows, "the last layer, all heads, rows to the end"
        return Inquiry((901, 902, 903, 904, 905), (1, 4), (1, 5), heads, keep_rows=True)

    def read(self, segments: Sequence[Sequence[int]], depth: int | None = None) -> Iterator[tuple[int, Any]]:
        (ids,) = segments
        self.seen.append(list(ids))
        yield 0, list(ids)

    def ask(self, stored: Sequence[Any], inquiry: Inquiry) -> Iterator[tuple[int, Reading]]:
        (ids,) = stored
        yield 0, Reading(np.zeros((2, len(ids)), np.float32), np.zeros(0, np.float32), None, self.rows(ids))

    def rows(self, ids: Sequence[int]) -> np.ndarray:
        """[heads, rows, prefix + context + inquiry]"""
        rng = np.random.default_rng(sum((i + 1) * token for i, token in enumerate(ids)))
        rows = rng.random((2, 4, self.prefix + len(ids) + 5)).astype(np.float32) ** 6
        return rows / rows.sum(-1, keepdims=True)


class Corpus:
    """Units of given lengths in one text; token ids count up."""

    def __init__(self, lengths: Sequence[int]) -> None:
        edges = np.cumsum([0, *lengths]).tolist()
        self.units = [Unit(i, 0, a, b, a, b) for i, (a, b) in enumerate(zip(edges, edges[1:], strict=False))]
        self.probe = Scripted()

    def ids(self, unit: int) -> np.ndarray:
        return np.arange(self.units[unit].first, self.units[unit].last, dtype=np.int32)


def released(corpus: Corpus, window: int, topk: int, phrase: int) -> list[int]:
    """The published loop, one sentence after the other; the units retained at the end."""
    chunks: list[list[int]] = [[]]
    for i, unit in enumerate(corpus.units):
        if chunks[-1] and sum(corpus.units[j].tokens for j in chunks[-1]) + unit.tokens > window:
            chunks.append([])
        chunks[-1].append(i)
    retained: list[int] = []
    omega = None
    for chunk in chunks:
        competing = retained + chunk
        ids = [int(token) for i in competing for token in corpus.ids(i)]
        summed = corpus.probe.rows(ids).astype(np.float64).sum(0)
        if omega is None:
            omega = summed[:, -4:].sum(1)  # the question's own columns, on the first chunk only
        tokens = slow_scores(summed[:, 3 : 3 + len(ids)], omega, phrase)
        winners = sorted(range(len(ids)), key=lambda j: (-tokens[j], j))[:topk]
        owner = [i for i in competing for _ in range(corpus.units[i].tokens)]
        retained = [i for i in competing if any(owner[j] == i for j in winners)]
    return retained


@pytest.mark.parametrize("seed", range(6))
def test_the_paper_mode_retains_what_the_released_loop_retains(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 15, 30).tolist()
    corpus: Any = Corpus(lengths)
    options = {"window": 40, "topk": 25, "phrase": 8}
    expected = released(corpus, **options)
    corpus.probe.seen.clear()
    scores = InfiniRetri(compat="paper", **options).score("q", corpus, 10)
    kept = np.flatnonzero(scores.values > -np.inf).tolist()
    assert kept == expected and 0 < len(kept) < 30
    assert scores.tokens_read == sum(len(ids) + 5 for ids in corpus.probe.seen)
    assert scores.facts["retained"] == len(kept)
    assert all(len(ids) <= 40 + 25 * 15 for ids in corpus.probe.seen) and len(corpus.probe.seen) > 3


def reader_of() -> Reader:
    model = tiny.model("llama", num_hidden_layers=3)
    heads = Calibration("any", 0, 1, ((2, 1), (0, 3)), (1.0, 1.0), 1.0)
    return Reader(model, tiny.tokenizer("system"), encoder=None, calibration=heads, segment_tokens=64)


def test_the_default_mode_gives_each_segment_its_score_in_whatever_order_they_stand() -> None:
    reader = reader_of()
    parts = [
        Document.from_text(
            f"The street {i} is in report {i * 77}. All that winter the letter was in room {i}.", id=str(i)
        )
        for i in range(6)
    ]
    question = "Where is the letter?"
    book = reader.compile(parts)
    straight = InfiniRetri().score(question, book, 100).values
    order = [3, 0, 5, 2, 4, 1]
    other = reader.compile([parts[i] for i in order])
    shuffled = InfiniRetri().score(question, other, 100).values
    by_part = [straight[[u.document == i for u in book.units]].tolist() for i in range(6)]
    moved = [shuffled[[u.document == i for u in other.units]].tolist() for i in range(6)]
    assert np.ptp(straight) > 1e-3
    for place, part in enumerate(order):
        np.testing.assert_allclose(moved[place], by_part[part], atol=1e-5)


def test_scores_are_the_mean_over_heads_of_each_heads_share() -> None:
    reader = reader_of()
    book = reader.compile(Document.from_text("The letter is in room 7. The street is quiet. " * 12))
    values = InfiniRetri().score("Which room?", book, 100).values
    inquiry = book.probe.inquiry("Which room?", heads=((2, 1), (0, 3)))
    mass = np.zeros((2, len(book.units)))
    for segment, reading in book.ask(range(len(book.segments)), inquiry):
        at = 0
        for unit in range(*book.segments[segment]):
            size = book.units[unit].tokens
            mass[:, unit] = reading.attention[:, at : at + size].sum(1)
            at += size
    np.testing.assert_allclose(values, (mass / mass.sum(1, keepdims=True)).mean(0), atol=1e-6)
    assert values.sum() == pytest.approx(1.0, abs=1e-4)


def test_counts_below_one_are_refused_with_their_values() -> None:
    with pytest.raises(BadOption, match="window=0, topk=300 and phrase=8 must be at least 1"):
        plugins.load("selectors", "infiniretri:window=0")


def test_units_without_tokens_get_nothing_and_take_nothing() -> None:
    """np.add.reduceat gave them their neighbour's token, and failed where they stood last."""

    class Three:
        segments = ((0, 4),)
        units = (Unit(0, 0, 0, 2, 0, 2), Unit(1, 0, 2, 3, 2, 2), Unit(2, 0, 3, 4, 2, 3), Unit(3, 0, 4, 5, 3, 3))

    corpus: Any = Three()
    reading = Reading(np.array([[1, 2, 4]], dtype=np.float32), np.zeros(0, np.float32))
    assert per_unit(corpus, 0, reading).tolist() == [[3.0, 0.0, 4.0, 0.0]]


def test_heads_that_look_nowhere_count_nothing() -> None:
    mass = np.array([[0, 0, 0], [1, 3, 0]], dtype=np.float32)
    np.testing.assert_allclose(fuse(mass), [0.125, 0.375, 0])


def test_without_a_calibration_one_middle_layer_is_used_and_said() -> None:
    model = tiny.model(num_hidden_layers=4)
    reader = Reader(model, tiny.tokenizer("system"), encoder=None, calibration=None)
    book: Any = reader.compile(Document.from_text("The letter is in room 7."))
    heads, warnings = heads_of(book)
    assert heads == tuple((2, head) for head in range(4))
    assert "not calibrated" in warnings[0] and "layer 2" in warnings[0] and "longctx calibrate" in warnings[0]
