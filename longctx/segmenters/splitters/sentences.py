"""Sentences, packed into units: the splitter for prose, transcripts and lists in any script.

Owns the options. The rules of sentences are in ``_prose``, those of units in ``_packing``.
"""

from __future__ import annotations

from dataclasses import dataclass

from longctx.segmenters.splitters._packing import check_cap, merge, pack, snap, tile
from longctx.segmenters.splitters._prose import boundaries
from longctx.types import EncodedDocument, Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentences:
    """Units of whole sentences, at most ``max_tokens`` tokens each.

    A unit ends at a blank line unless it holds fewer than ``min_tokens`` tokens: a heading or a one-word turn is joined
    to what follows it. A sentence beyond the cap is cut at a line end, else at white space, else between characters.
    """

    max_tokens: int = 96
    min_tokens: int = 24

    def __post_init__(self) -> None:
        check_cap("sentences", "max_tokens", self.max_tokens, self.min_tokens)

    def split(self, encoded: EncodedDocument) -> tuple[Span, ...]:
        """Spans that tile the text, each of at most ``max_tokens`` tokens."""
        positions, blank = boundaries(encoded.document.text)
        cuts, barriers = merge(snap(encoded, positions), blank)
        return tile(encoded, pack(encoded, cuts, barriers, self.max_tokens, self.min_tokens))

    @staticmethod
    def begins(text: str) -> list[int]:
        """Ascending characters at which a sentence, paragraph or line of its own begins, the first of all left out."""
        return boundaries(text)[0]

    def warnings(self, encoded: EncodedDocument) -> tuple[str, ...]:
        """Nothing is ever done differently from what was asked."""
        return ()


PLUGIN = Sentences
