"""One question's selection: the method scores, the one cut decides, and the result says what was done.

Knows no method: a selector is a name or an object that gives scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from longctx import cut, plugins
from longctx.compiled import CompiledDocument
from longctx.errors import BadOption, DoesNotFit, UsageError
from longctx.protocols import Selector
from longctx.questions import whole_document
from longctx.types import SelectedSpan, Selection, Step

EVERYTHING = "all"


def select(
    book: CompiledDocument,
    question: str,
    budget_tokens: int,
    selector: str | Selector,
    count: Callable[[str], int],
    late_warnings: Callable[[], Iterable[str]],
) -> Selection:
    """The spans worth reading, within ``budget_tokens``; a text that fits is kept whole by all but the baselines.

    Raises UnknownMethod or BadOption for the selector, UsageError where its scores are no numbers, and DoesNotFit when
    not even the smallest unit fits.
    """
    started = time.perf_counter()
    name = selector if isinstance(selector, str) else type(selector).__name__
    warnings = [*book.warnings]
    if name == EVERYTHING:
        return _whole(book, started, name, warnings, count)
    method = plugins.resolve("selectors", selector)
    if not method.baseline and book.tokens <= budget_tokens:
        whole = _whole(book, started, name, warnings, count)
        if whole.tokens <= budget_tokens:
            return whole
    warnings += whole_document(question)
    scores = method.score(question, book, budget_tokens)
    scored = time.perf_counter()
    warnings += [*scores.warnings, *late_warnings()]
    values = scores.values
    if np.shape(values) != (len(book.units),):
        raise UsageError(
            f"the selector {name} returned scores {np.shape(values)} where {len(book.units)} units need one each."
        )
    if lost := int(np.isnan(values).sum()):
        raise UsageError(
            f"the selector {name} returned NaN for {lost} of {len(values)} units, and scores must be numbers. Where "
            "they come from the model, load it in another dtype, such as float32."
        )
    spans: tuple[SelectedSpan, ...] = ()
    text, tokens = "", 0
    if not scores.relevant:
        warnings.append(
            "nothing in the text seems related to the question: what was kept, if anything, is a guess. "
            'selector="auto:refuse=false" has the model asked all the same.'
        )
    fits = min(unit.tokens for unit in book.units) <= budget_tokens
    never = scores.relevant and fits and not (values > -np.inf).any()
    if never:
        warnings.append(f"the selector {name} keeps nothing of the text.")
    elif scores.relevant or (values != values[:1]).any():  # else no unit is a better guess than another
        spans, text, tokens = cut.cut(book.documents, book.units, values, budget_tokens, count)
        if not spans:
            raise DoesNotFit(
                f"no unit fits a budget of {budget_tokens} tokens; the smallest has "
                f"{min(unit.tokens for unit in book.units)}. Raise the budget, give the splitter a smaller cap, or "
                f"lower max_new_tokens where the window sets the budget."
            )
    ended = time.perf_counter()
    facts = {"selector": name, "tokens_read": scores.tokens_read, "bytes": book.nbytes}
    steps = (
        Step("select", scored - started, facts | scores.facts),
        Step("cut", ended - scored, {"budget_tokens": budget_tokens, "tokens": tokens, "spans": len(spans)}),
    )
    return Selection(
        spans=spans,
        text=text,
        tokens=tokens,
        dropped_tokens=book.tokens - _kept(book, spans),
        tokens_read=scores.tokens_read,
        seconds=ended - started,
        selector=name,
        relevant=scores.relevant and not never,
        warnings=tuple(warnings),
        trace=steps,
        profile=cut.profile(book.documents, book.units, values),
        order=() if method.baseline else _order(book, spans, budget_tokens, count, scores.floor),
    )


def recut(book: CompiledDocument, selection: Selection, budget_tokens: int, count: Callable[[str], int]) -> Selection:
    """``selection`` with its scores cut to ``budget_tokens``; what was read and how long it took stay as they were.

    All spans are read then: a selector's floor belongs to scores made for the budget.

    Raises BadOption for a selection that has no scores: one of a text that was kept whole.
    """
    if len(selection.profile) != len(book.units):
        raise BadOption("the selection holds no scores of this document's units, so it cannot be cut again.")
    values = np.array([unit.score for unit in selection.profile], dtype=np.float32)
    spans, text, tokens = cut.cut(book.documents, book.units, values, budget_tokens, count)
    dropped = book.tokens - _kept(book, spans)
    order = _order(book, spans, budget_tokens, count) if selection.order else ()
    return replace(selection, spans=spans, text=text, tokens=tokens, dropped_tokens=dropped, order=order)


def _order(
    book: CompiledDocument,
    spans: tuple[SelectedSpan, ...],
    budget_tokens: int,
    count: Callable[[str], int],
    floor: float = 0.0,
) -> tuple[int, ...]:
    """The spans that the model reads, in its order: without those below ``floor``, the strongest next to the question.

    Small models overlook what stands in the middle (Liu et al. 2023, arXiv 2307.03172). Where that order takes more
    tokens than the budget, it is all spans in the order of the documents.
    """
    order = cut.reading_order(spans, floor)
    text = cut.joined(book.documents, [spans[at] for at in order])
    return order if count(text) <= budget_tokens else tuple(range(len(spans)))


def _whole(
    book: CompiledDocument, started: float, name: str, warnings: list[str], count: Callable[[str], int]
) -> Selection:
    """All documents as one span each; nothing was read to choose them."""
    spans = tuple(SelectedSpan(d.id, 0, len(d.text), d.page_at(0), 0.0) for d in book.documents)
    text = cut.joined(book.documents, spans)
    seconds = time.perf_counter() - started
    step = Step("select", seconds, {"selector": name, "tokens_read": 0, "bytes": book.nbytes, "whole": True})
    return Selection(spans, text, count(text), 0, 0, seconds, name, True, tuple(warnings), (step,))


def _kept(book: CompiledDocument, spans: Iterable[SelectedSpan]) -> int:
    by_id = {encoded.document.id: encoded for encoded in book.encoded}
    return sum(by_id[span.document_id].count(span.start, span.end) for span in spans)
