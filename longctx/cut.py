"""The one cut: scores and a budget in, spans out. Every selector's scores pass through here and nowhere else.

Knows no method and no model; the tokens of a text are counted by a function handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from longctx.types import Document, SelectedSpan, Unit

SEPARATOR = "\n\n"  # stands between spans that do not touch


def fill(values: NDArray[np.float32], sizes: Sequence[int], budget_tokens: int) -> list[int]:
    """Indices of the units kept, ascending: best first while they fit, ties to the earlier unit, ``-inf`` never.

    A unit that no longer fits is passed over and smaller ones after it may still be kept.
    """
    order = np.argsort(-values.astype(np.float64), kind="stable")
    kept, used = [], 0
    for index in order:
        if values[index] == -np.inf:
            break
        if used + sizes[index] <= budget_tokens:
            kept.append(int(index))
            used += sizes[index]
    return sorted(kept)


def cut(
    documents: Sequence[Document],
    units: Sequence[Unit],
    values: NDArray[np.float32],
    budget_tokens: int,
    count: Callable[[str], int],
) -> tuple[tuple[SelectedSpan, ...], str, int]:
    """Spans in document order, their joined text, and its tokens: never more than ``budget_tokens``.

    The first fill counts units by their own tokens. Joined text may count differently, so it is counted as a whole and
    the weakest unit leaves until it fits.
    """
    if np.isnan(values).any():
        raise ValueError("a selector returned NaN")
    separator = count(SEPARATOR)
    sizes = [unit.tokens for unit in units]
    kept = fill(values, sizes, budget_tokens)
    while kept:
        spans = _merge(documents, units, values, kept)
        text = joined(documents, spans)
        tokens = count(text)
        if tokens <= budget_tokens:
            return spans, text, tokens
        if len(kept) == 1:  # longer alone than in its place: the others compete without it
            sizes[kept[0]] = tokens
            kept = fill(values, sizes, budget_tokens)
            continue
        excess = tokens - budget_tokens
        for index in sorted(kept, key=lambda i: (values[i], -i)):
            kept.remove(index)
            excess -= sizes[index] + separator
            if excess <= 0:
                break
    return (), "", 0


def joined(documents: Sequence[Document], spans: Sequence[SelectedSpan]) -> str:
    """The spans' texts with a separator between those that do not touch."""
    return SEPARATOR.join(pieces(documents, spans))


def pieces(documents: Sequence[Document], spans: Sequence[SelectedSpan]) -> list[str]:
    """The spans' texts as they stand in the joined text."""
    texts = {document.id: document.text for document in documents}
    return [texts[span.document_id][span.start : span.end].strip("\r\n") for span in spans]


def reading_order(spans: Sequence[SelectedSpan], floor: float = 0.0) -> tuple[int, ...]:
    """The places of the spans that score at least ``floor`` times the highest score, in order but for the strongest.

    That, the last of several, ends them. Without a floor, or where no score is above zero, all are there.
    """
    strongest = max(range(len(spans)), key=lambda at: (spans[at].score, at), default=0)
    least = floor * spans[strongest].score if floor and spans and 0 < spans[strongest].score < math.inf else -math.inf
    worth = [at for at, span in enumerate(spans) if at == strongest or span.score >= least]
    return tuple(sorted(worth, key=lambda at: at == strongest))


def profile(
    documents: Sequence[Document], units: Sequence[Unit], values: NDArray[np.float32]
) -> tuple[SelectedSpan, ...]:
    """The score of every unit as a span of its own, for plots."""
    return tuple(_span(documents, unit, unit.start, unit.end, float(values[unit.index])) for unit in units)


def _merge(
    documents: Sequence[Document], units: Sequence[Unit], values: NDArray[np.float32], kept: Sequence[int]
) -> tuple[SelectedSpan, ...]:
    """Runs of touching units as one span each, scored by their best unit."""
    spans: list[SelectedSpan] = []
    run: list[int] = []
    for index in kept:
        if run and (units[index].document != units[run[-1]].document or units[index].start != units[run[-1]].end):
            spans.append(_run(documents, units, values, run))
            run = []
        run.append(index)
    if run:
        spans.append(_run(documents, units, values, run))
    return tuple(spans)


def _run(
    documents: Sequence[Document], units: Sequence[Unit], values: NDArray[np.float32], run: Sequence[int]
) -> SelectedSpan:
    best = max(float(values[index]) for index in run)
    return _span(documents, units[run[0]], units[run[0]].start, units[run[-1]].end, best)


def _span(documents: Sequence[Document], unit: Unit, start: int, end: int, score: float) -> SelectedSpan:
    document = documents[unit.document]
    return SelectedSpan(document.id, start, end, document.page_at(start), score)
