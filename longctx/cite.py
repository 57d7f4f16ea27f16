"""Where an answer stands in the source: sentences of the selected spans that hold the answer's own words.

Owns the measure of support. Knows no model: a citation is computed from offsets, never taken from what a model wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from longctx.lexical import words
from longctx.segmenters.splitters._prose import boundaries
from longctx.types import Citation, Document, SelectedSpan

_MOST = 3  # citations per answer
_SUPPORT = 0.5  # share of the answer's weight that one quote must hold
_ECHO = 0.25  # what a word counts that the question already said


def cite(
    answer: str,
    question: str,
    documents: Sequence[Document],
    spans: Sequence[SelectedSpan],
    weight: Callable[[str], float],
) -> tuple[Citation, ...]:
    """The sentences that best hold the answer's words, best first; none where no sentence holds half of their weight.

    ``weight`` is the inverse document frequency of a word. Always ``document.text[start:end] == quote``. A citation's
    score is the share of the answer's weight that its quote holds.
    """
    asked = set(words(question))
    worth = {word: weight(word) * (_ECHO if word in asked else 1.0) for word in set(words(answer))}
    new = set(worth) - asked
    total = sum(worth.values())
    if total <= 0:
        return ()
    found = []
    for document_id, start, end, page, text in _sentences(documents, spans):
        held = set(words(text))
        support = sum(worth[word] for word in worth if word in held) / total
        if support < _SUPPORT or (new and not new & held):
            continue
        near = sum(weight(word) for word in asked if word in held)  # of two equal quotes, the one about the question
        found.append((support, near, Citation(document_id, start, end, page, text, round(support, 4))))
    found.sort(key=lambda item: (-item[0], -item[1], item[2].start))
    return tuple(citation for _, _, citation in found[:_MOST])


def _sentences(
    documents: Sequence[Document], spans: Sequence[SelectedSpan]
) -> Sequence[tuple[str, int, int, int | None, str]]:
    """Every sentence of every span, without the white space around it: (document id, start, end, page, text)."""
    by_id = {document.id: document for document in documents}
    found = []
    for span in spans:
        document = by_id[span.document_id]
        text = document.text[span.start : span.end]
        cuts = sorted({0, len(text), *(int(at) for at in boundaries(text)[0])})
        for a, b in zip(cuts, cuts[1:], strict=False):
            piece = text[a:b]
            start = span.start + a + len(piece) - len(piece.lstrip())
            end = span.start + b - (len(piece) - len(piece.rstrip()))
            if end > start:
                found.append((document.id, start, end, document.page_at(start), document.text[start:end]))
    return found
