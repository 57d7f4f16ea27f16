"""How much each place of a prompt counts as a source of copies: the more, the better the selector liked its span.

Owns the scale: scores of any selector become factors around one. Knows no method and no drafter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longctx import cut
from longctx.backend.tokens import Tokens
from longctx.types import Document, SelectedSpan

_MOST = 2.0  # standard deviations that are told apart


def votes(
    tokens: Tokens, documents: Sequence[Document], spans: Sequence[SelectedSpan], prompt: Sequence[int], first: int
) -> NDArray[np.float32] | None:
    """One factor for every token of ``prompt``, whose token ``first`` begins the text of ``spans`` as they come.

    A span's tokens count exp(z), z being its score in standard deviations from the spans' mean; all others count 1.
    None where the spans' scores say nothing: one span, or all alike.
    """
    scores = np.array([span.score for span in spans])
    spread = float(scores.std()) if len(scores) > 1 and np.isfinite(scores).all() else 0.0
    if not spread:
        return None
    factors = np.exp(np.clip((scores - scores.mean()) / spread, -_MOST, _MOST))
    lengths = [len(piece) + len(cut.SEPARATOR) for piece in cut.pieces(documents, spans)]
    starts = np.concatenate(([0], np.cumsum(lengths)))[:-1]
    begins = tokens.encode(Document.from_text(cut.joined(documents, spans))).token_starts
    found = np.ones(len(prompt), dtype=np.float32)
    own = found[first : first + len(begins)]
    own[:] = factors[np.searchsorted(starts, begins[: len(own)], side="right") - 1]
    return found
