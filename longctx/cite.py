"""Where an answer stands in the source: sentences of the selected spans that hold the answer's own words.

Owns the measure of support. Knows no model: a citation is computed from offsets, never taken from what a model wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from longctx.lexical import words
from longctx.segmenters.splitters._prose import boundaries
from longctx.types import Citation, Document, SelectedSpan

_SUPPORT = 0.5  # share of the answer's weight that one quote must hold
_ECHO = 0.25  # what a word counts that the question already said


def cite(
    answer: str,
    question: str,
    documents: Sequence[Document],
    spans: Sequence[SelectedSpan],
    weight: Callable[[str], float],
) -> tuple[Citation, ...]:
    """For each sentence of the answer the source sentence that best holds its words, in the order of the answer.

    None where no source sentence holds half of the weight of the words, or none of those that the question did not
    already say. ``weight`` is the inverse document frequency of a word. Always ``document.text[start:end] == quote``. A
    citation's score is the share of the weight that its quote holds.
    """
    asked = set(words(question))
    source = [(set(words(citation.quote)), citation) for citation in _sentences(documents, spans)]
    found: dict[tuple[str, int], Citation] = {}
    for statement in _pieces(answer):
        best = _best(set(words(answer[slice(*statement)])), asked, source, weight)
        if best is not None and (best.document_id, best.start) not in found:
            found[best.document_id, best.start] = best
    return tuple(found.values())


def nearest(question: str, text: str) -> tuple[int, int]:
    """Where in ``text`` the sentence stands that holds the most words of ``question``, the first of equals.

    All of ``text`` where no sentence holds one.
    """
    asked = set(words(question))
    held = [(len(asked & set(words(text[start:end]))), -start, end) for start, end in _pieces(text)]
    most, start, end = max(held, default=(0, 0, 0))
    return (-start, end) if most else (0, len(text))


def _best(
    said: set[str],
    asked: set[str],
    source: Sequence[tuple[set[str], Citation]],
    weight: Callable[[str], float],
) -> Citation | None:
    """The source sentence that holds the largest share of what was ``said``, if that is enough."""
    worth = {word: weight(word) * (_ECHO if word in asked else 1.0) for word in said}
    total, new = sum(worth.values()), said - asked
    best: tuple[float, float, Citation] | None = None
    for held, citation in source:
        support = sum(worth[word] for word in said & held) / total if total else 0.0
        if support < _SUPPORT or (new and not new & held):
            continue
        near = sum(weight(word) for word in asked & held)  # of two equal quotes, the one about the question
        if best is None or (support, near) > best[:2]:
            best = (support, near, replace(citation, score=round(support, 4)))
    return best[2] if best else None


def _pieces(text: str) -> Sequence[tuple[int, int]]:
    """Every sentence of ``text`` without the white space around it."""
    cuts = sorted({0, len(text), *boundaries(text)[0]})
    found = []
    for a, b in zip(cuts, cuts[1:], strict=False):
        piece = text[a:b]
        start, end = a + len(piece) - len(piece.lstrip()), b - (len(piece) - len(piece.rstrip()))
        if end > start:
            found.append((start, end))
    return found


def _sentences(documents: Sequence[Document], spans: Sequence[SelectedSpan]) -> Sequence[Citation]:
    """Every sentence of every span as a quote without a score."""
    by_id = {document.id: document for document in documents}
    found = []
    order = {document.id: number for number, document in enumerate(documents)}
    for span in sorted(spans, key=lambda span: (order[span.document_id], span.start)):  # of equals the first is cited
        document = by_id[span.document_id]
        for a, b in _pieces(document.text[span.start : span.end]):
            start, end = span.start + a, span.start + b
            quote = document.text[start:end]
            found.append(Citation(document.id, start, end, document.page_at(start), quote, 0.0))
    return found
