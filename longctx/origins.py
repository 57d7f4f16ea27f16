"""Where the tokens of a prompt stand in the documents: for votes of drafters, and for saying what an answer copied.

Owns the way from a token of the joined spans to a character of a document, and the scale of votes. Knows no method and
no drafter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from longctx import cut
from longctx.backend.tokens import Tokens
from longctx.generated import Copy, Passage, located
from longctx.types import Document, SelectedSpan

_MOST = 2.0  # standard deviations that are told apart


class Origins:
    """The text of ``spans`` as they come, whose first token is number ``first`` of a prompt."""

    def __init__(
        self, tokens: Tokens, documents: Sequence[Document], spans: Sequence[SelectedSpan], first: int
    ) -> None:
        texts = {document.id: document.text for document in documents}
        raw = [texts[span.document_id][span.start : span.end] for span in spans]
        self._joined = cut.joined(documents, spans)
        self._tokens, self._spans, self._first = tokens, spans, first
        self._lengths = [len(piece) for piece in cut.pieces(documents, spans)]
        steps = np.cumsum([0, *(length + len(cut.SEPARATOR) for length in self._lengths)])
        self._starts = steps[:-1]  # of every span in the joined text
        self._places = [
            span.start + len(text) - len(text.lstrip("\r\n")) for span, text in zip(spans, raw, strict=True)
        ]

    @cached_property
    def _begins(self) -> NDArray[np.int64]:
        """Where every token begins, and the end of the last: worked out when a vote or a copy asks for it."""
        blank = not self._joined.strip()  # spans of empty lines: a document of nothing has no tokens
        if blank:
            return np.array([len(self._joined)], dtype=np.int64)
        encoded = self._tokens.encode(Document.from_text(self._joined), at_once=True)  # as the prompt's were made
        return np.append(encoded.token_starts, len(self._joined))

    def votes(self, count: int) -> NDArray[np.float32] | None:
        """One factor for every one of the ``count`` tokens of the prompt: how much it counts as a source of copies.

        A span's tokens count exp(z), z being its score in standard deviations from the spans' mean; all others count 1.
        None where the spans' scores say nothing: one span, or all alike.
        """
        scores = np.array([span.score for span in self._spans])
        spread = float(scores.std()) if len(scores) > 1 and np.isfinite(scores).all() else 0.0
        if not spread:
            return None
        factors = np.exp(np.clip((scores - scores.mean()) / spread, -_MOST, _MOST))
        found = np.ones(count, dtype=np.float32)
        own = found[self._first : self._first + len(self._begins) - 1]
        own[:] = factors[np.searchsorted(self._starts, self._begins[: len(own)], side="right") - 1]
        return found

    def copies(self, runs: Sequence[tuple[int, int, int]]) -> tuple[Copy, ...]:
        """What of ``runs`` (first new token, first token of the prompt, how many) was copied from the documents.

        A run over two spans is two, and what was copied from around the text is left out.
        """
        return located(runs, self._passages) if runs else ()

    @cached_property
    def _passages(self) -> list[Passage]:
        found = []
        for span, start, length, own in zip(self._spans, self._starts, self._lengths, self._places, strict=True):
            a, b = np.searchsorted(self._begins[:-1], (start, start + length))
            # what the span's last token reaches of the separator is of no document
            bounds = own + np.minimum(self._begins[a : b + 1] - start, length)
            found.append(Passage(span.document_id, self._first + int(a), bounds))
        return found
