"""Paragraphs, packed into units: whole blocks of text between blank lines.

Owns the options and the step from paragraphs to sentences where a paragraph is too long.
"""

from __future__ import annotations

from dataclasses import dataclass

from longctx.segmenters.splitters._packing import check_cap, merge, pack, snap, tile
from longctx.segmenters.splitters._prose import boundaries
from longctx.types import EncodedDocument, Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Paragraphs:
    """Units of whole paragraphs, at most ``max_tokens`` tokens each; short neighbours share a unit.

    A paragraph beyond the cap is cut between sentences, and begins and ends a unit of its own unless what would be
    parted off holds fewer than ``min_tokens`` tokens.
    """

    max_tokens: int = 256
    min_tokens: int = 24

    def __post_init__(self) -> None:
        check_cap("paragraphs", "max_tokens", self.max_tokens, self.min_tokens)

    def split(self, encoded: EncodedDocument) -> tuple[Span, ...]:
        """Spans that tile the text, each of at most ``max_tokens`` tokens."""
        positions, blank = boundaries(encoded.document.text)
        cuts, ends_paragraph = merge(snap(encoded, positions), blank)
        total = len(encoded.token_starts)
        kept, barriers = _open_long_paragraphs(cuts, ends_paragraph, total, self.max_tokens)
        return tile(encoded, pack(encoded, kept, barriers, self.max_tokens, self.min_tokens))

    def warnings(self, encoded: EncodedDocument) -> tuple[str, ...]:
        """Nothing is ever done differently from what was asked."""
        return ()


def _open_long_paragraphs(
    cuts: list[int], ends_paragraph: list[bool], total: int, max_tokens: int
) -> tuple[list[int], list[bool]]:
    """The cuts between paragraphs, and those inside the ones longer than ``max_tokens``, which get barriers around."""
    kept: list[int] = []
    barriers: list[bool] = []
    inside: list[int] = []
    first, after_long = 0, False
    for cut, is_end in zip([*cuts, total], [*ends_paragraph, True], strict=True):
        if not is_end:
            inside.append(cut)
            continue
        long = cut - first > max_tokens
        if first:
            kept.append(first)
            barriers.append(long or after_long)
        if long:
            kept += inside
            barriers += [False] * len(inside)
        first, inside, after_long = cut, [], long
    return kept, barriers


PLUGIN = Paragraphs
