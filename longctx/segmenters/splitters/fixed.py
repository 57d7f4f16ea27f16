"""Windows of a fixed number of tokens: the baseline that knows nothing about the text."""

from __future__ import annotations

from dataclasses import dataclass

from longctx.segmenters.splitters._packing import check_cap, last_cut, tile
from longctx.types import EncodedDocument, Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed:
    """Units of exactly ``tokens`` tokens, the last one shorter; a cut inside a character moves back before it."""

    tokens: int = 128

    def __post_init__(self) -> None:
        check_cap("fixed", "tokens", self.tokens)

    def split(self, encoded: EncodedDocument) -> tuple[Span, ...]:
        """Spans that tile the text, each of at most ``tokens`` tokens."""
        total = len(encoded.token_starts)
        units: list[int] = []
        first = 0
        while total - first > self.tokens:
            first = last_cut(encoded, first, self.tokens)
            if first < total:
                units.append(first)
        return tile(encoded, units)

    def warnings(self, encoded: EncodedDocument) -> tuple[str, ...]:
        """Nothing is ever done differently from what was asked."""
        return ()


PLUGIN = Fixed
