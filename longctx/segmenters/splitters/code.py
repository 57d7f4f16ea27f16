"""Code, cut along its syntax tree (the splitting of SEA, arXiv 2208.11271, to a budget of tokens instead of lines).

Owns the way from an outline of the syntax to units with their signatures. Knows no grammar and no tree.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace

import numpy as np

from longctx.segmenters.splitters._packing import check_cap, merge, pack, snap, tile
from longctx.segmenters.splitters._syntax import Definition, Source, outline
from longctx.types import EncodedDocument, Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """Units of whole syntax nodes, at most ``max_tokens`` tokens each; siblings share a unit while they fit.

    A unit inside the body of a function or class has its signature as ``context``. ``Document.language`` names the
    grammar. Comments and decorators stay with what they stand before.
    """

    max_tokens: int = 192
    min_tokens: int = 24

    def __post_init__(self) -> None:
        check_cap("code", "max_tokens", self.max_tokens, self.min_tokens)

    def split(self, encoded: EncodedDocument) -> tuple[Span, ...]:
        """Spans that tile the text, each of at most ``max_tokens`` tokens; code that does not parse is tiled too.

        Raises UsageError for a language without a known grammar, MissingExtra when its package is not installed.
        """
        source = Source(encoded.document.text)
        starts = source.bytes(encoded.token_starts).tolist()

        def count(start: int, end: int) -> int:
            return bisect_left(starts, end) - bisect_left(starts, start)

        syntax = outline(source, encoded.document.language, count, self.max_tokens)
        positions = source.characters(np.asarray(syntax.cuts, dtype=np.int64)).tolist()
        cuts, barriers = merge(snap(encoded, positions), syntax.barriers)
        spans = tile(encoded, pack(encoded, cuts, barriers, self.max_tokens, self.min_tokens))
        return _with_signatures(encoded, spans, _in_characters(source, syntax.definitions), self.max_tokens)

    def warnings(self, encoded: EncodedDocument) -> tuple[str, ...]:
        """Nothing is ever done differently from what was asked."""
        return ()


def _in_characters(source: Source, definitions: list[Definition]) -> list[Definition]:
    """The same definitions, outer before inner, counted in characters."""
    places = np.asarray([(d.start, d.body, d.end) for d in definitions], dtype=np.int64).reshape(-1)
    rows = source.characters(places).reshape(-1, 3).tolist()
    return [Definition(start, body, end) for start, body, end in rows]


def _with_signatures(
    encoded: EncodedDocument, spans: tuple[Span, ...], definitions: list[Definition], max_tokens: int
) -> tuple[Span, ...]:
    """Each span with the signature of the innermost definition that it lies in and that began before it."""
    text = encoded.document.text
    stack: list[tuple[Definition, tuple[int, int]]] = []
    result: list[Span] = []
    upcoming = 0
    for span in spans:
        while upcoming < len(definitions) and definitions[upcoming].start < span.start:
            definition = definitions[upcoming]
            stack.append((definition, _signature(encoded, definition, max_tokens)))
            upcoming += 1
        content = span.end - len(text[span.start : span.end].lstrip())
        while stack and stack[-1][0].end <= content:
            stack.pop()
        inside = next((signature for _, signature in reversed(stack) if signature[1] <= span.start), None)
        result.append(replace(span, context=inside) if inside else span)
    return tuple(result)


def _signature(encoded: EncodedDocument, definition: Definition, max_tokens: int) -> tuple[int, int]:
    """The range of the signature without the white space at its end, and at most ``max_tokens`` of it."""
    starts = encoded.token_starts
    end = definition.start + len(encoded.document.text[definition.start : definition.body].rstrip())
    beyond = bisect_right(starts, definition.start) + max_tokens - 1
    return definition.start, min(end, int(starts[beyond])) if beyond < len(starts) else end


PLUGIN = Code
