"""What a model is given to read of a long document: the systems that stand in one table at equal budget.

A selector of longctx by its name; ``middle``, which drops the middle as LongBench's truncation does; ``closed_book``,
which shows no document; ``full``, which shows all of it. Owns the texts and how long they are. All systems answer
through one call with one prompt, so that rows differ in the text alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import longctx
from longctx import plugins
from longctx.errors import DoesNotFit

from .cases import Question

SYSTEMS = ("auto", "bm25", "dense", "head", "middle", "closed_book", "full")
NO_TEXT = "(none)"  # stands in the text's place for closed_book; a sentence would be quoted by small models
_BEGINNING = 2_000  # characters of a document on which each selector is tried once
_SLACK = 8  # tokens that a unit may have more when it stands alone
_WITHOUT_BUDGET = {"closed_book": 0, "full": None}


@dataclass(frozen=True, slots=True)
class Context:
    """The text given to the model, its tokens, and the characters of the document it was taken from."""

    text: str
    tokens: int
    spans: tuple[tuple[int, int], ...]
    tokens_read: int
    seconds: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """What the model answered and what it took."""

    text: str
    prompt_tokens: int
    new_tokens: int
    seconds: float


def is_selector(system: str) -> bool:
    """Whether ``system`` is a selector of longctx, written as a name or as name:option=value."""
    return system not in ("middle", *_WITHOUT_BUDGET)


def check(system: str) -> None:
    """Raises UnknownMethod or BadOption for a system that is none."""
    if is_selector(system):
        plugins.load("selectors", system)


def warm(reader: Any, text: str, names: Sequence[str]) -> None:
    """Afterwards what a selector needs once for a model (encoder, retrieval heads) is there, and no row pays for it."""
    query = "What is said here?"
    book = reader.compile(longctx.Document.from_text(text[:_BEGINNING], "beginning"))
    budget = min(room_for_units(book), reader.longest_selection(query))
    for name in filter(is_selector, names):
        try:
            reader.select(book, query, budget_tokens=max(1, budget), selector=name)
        except DoesNotFit:  # a window this small: the rows will say so, each for its own question
            return


def room_for_units(book: Any) -> int:
    """A budget that leaves something out of most texts and holds any one unit."""
    largest: int = max(unit.tokens for unit in book.units)
    return max(int(book.tokens) // 2, largest + _SLACK)


def budgets_of(system: str, budgets: tuple[int, ...]) -> tuple[int | None, ...]:
    """The budgets at which ``system`` has rows: one row, of 0 tokens or without a bound, where it has no budget."""
    return (_WITHOUT_BUDGET[system],) if system in _WITHOUT_BUDGET else budgets


def show(reader: Any, book: Any, question: Question, system: str, budget: int | None) -> Context:
    """What ``system`` shows of the compiled document ``book``, never more than ``budget`` tokens.

    Raises DoesNotFit when that, the prompt and the answer pass the model's window.
    """
    room = reader.longest_selection(question.prompt, question.max_new_tokens)
    needed = book.tokens if budget is None else min(budget, book.tokens)
    if needed > room:
        raise DoesNotFit(
            f"{needed:,} tokens of text do not fit: the window of {reader.window:,} leaves {room:,} beside the prompt "
            f"and an answer of {question.max_new_tokens}."
        )
    most = room if budget is None else min(budget, room)
    started = time.perf_counter()
    if system == "closed_book":
        return Context(NO_TEXT, 0, (), 0, 0.0)
    if system == "middle":
        text, spans = _ends(reader, book, most)
        return Context(text, _count(reader, text), spans, 0, time.perf_counter() - started)
    selector = "all" if system == "full" else system
    found = reader.select(book, question.query, budget_tokens=most, selector=selector)
    seconds = time.perf_counter() - started
    texts = {document.id: document.text for document in book.documents}
    read = found.as_read  # as ``ask`` does, and in its order
    text = "\n\n".join(texts[span.document_id][span.start : span.end].strip("\r\n") for span in read)
    spans = tuple((span.start, span.end) for span in found.spans if span in read)
    tokens = found.tokens if len(spans) == len(found.spans) else _count(reader, text)
    return Context(text, tokens, spans, found.tokens_read, seconds, found.warnings)


def answer(reader: Any, shown: Context, question: Question) -> Said:
    """The model's answer to the question's prompt after ``shown``, decoded token by token; no text, no answer.

    Drafts would follow the clock, and in 16 bits another run could say other words.

    Raises DoesNotFit when the prompt passes the model's window.
    """
    if not shown.text.strip():
        return Said("", 0, 0, 0.0)
    started = time.perf_counter()
    document = longctx.Document.from_text(shown.text, "shown")
    found = reader.ask(
        document, question.prompt, selector="all", max_new_tokens=question.max_new_tokens, drafters="none"
    )
    seconds = time.perf_counter() - started
    return Said(found.text, found.usage["prompt_tokens"], found.usage["new_tokens"], seconds)


def _ends(reader: Any, book: Any, budget: int) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The first and the last half of ``budget`` tokens, put together as they are.

    Cut text may have a token more than its parts had, so halves shrink until both fit the budget together.
    """
    encoded = book.encoded[0]
    whole, starts = encoded.document.text, encoded.token_starts
    if book.tokens <= budget and _count(reader, whole) <= budget:
        return whole, ((0, len(whole)),)
    for half in range(min(budget, book.tokens) // 2, 0, -1):
        first, last = int(starts[half]), int(starts[len(starts) - half])
        text = whole[:first] + whole[last:]
        if first <= last and _count(reader, text) <= budget:
            return text, ((0, first), (last, len(whole)))
    raise DoesNotFit(f"no text of both ends has {budget} tokens or fewer. Raise the budget.")


def _count(reader: Any, text: str) -> int:
    """The tokens of ``text`` as a prompt would hold them."""
    if not text:
        return 0
    document = longctx.Document.from_text(text, "shown")
    return int(reader.select(document, "count", selector="all").tokens)
