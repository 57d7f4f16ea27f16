"""From places where a text would like to be cut to units of at most a number of tokens that tile it.

Owns snapping to tokens, packing, cutting what is too long, and the spans. Works in token indices throughout, so every
unit begins at a token and holds at least one. Knows neither languages nor kinds of documents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longctx.errors import BadOption
from longctx.segmenters.splitters._boundaries import is_pair, may_cut
from longctx.types import EncodedDocument, Span

# Below it one visible character (an emoji is up to four byte tokens, CR LF two) may not fit.
SMALLEST_CAP = 8
_LINE_ENDS = frozenset("\n\r\x0b\x0c\x85\u2028\u2029")
_CLAUSE_ENDS = frozenset(",;:、，；：·،؛")
_BY_LINE, _BY_SPACE, _BY_CLAUSE, _ANYWHERE = 3, 2, 1, 0


def check_cap(method: str, option: str, cap: int, min_tokens: int = 0) -> None:
    """Raises BadOption unless ``cap`` can hold any character and ``min_tokens`` is not negative."""
    if cap < SMALLEST_CAP:
        raise BadOption(f"{method!r}: {option}={cap} is too small. Take {SMALLEST_CAP} or more.")
    if min_tokens < 0:
        raise BadOption(f"{method!r}: min_tokens={min_tokens} is negative. Take 0 or more.")


def snap(encoded: EncodedDocument, positions: Sequence[int]) -> NDArray[np.int64]:
    """For each of the ascending ``positions``, the first token of the character whose token holds it; -1 for no cut.

    A cut before a word moves before the space that the word's token begins with. Text below the first token, places
    that would part a character, and the start of the document give -1.
    """
    text, starts = encoded.document.text, encoded.token_starts
    if len(starts) == 0:
        return np.full(len(positions), -1, dtype=np.int64)
    holding = np.searchsorted(starts, np.asarray(positions, dtype=np.int64), side="right") - 1
    places = starts[np.maximum(holding, 0)]
    tokens = np.searchsorted(starts, places, side="left").astype(np.int64)
    tokens[(holding < 0) | (places <= 0) | (places >= len(text))] = -1
    allowed = [
        token > 0 and may_cut(text, place) for token, place in zip(tokens.tolist(), places.tolist(), strict=True)
    ]
    tokens[~np.asarray(allowed, dtype=bool)] = -1
    return tokens


def merge(tokens: NDArray[np.int64], barriers: Sequence[bool]) -> tuple[list[int], list[bool]]:
    """Ascending cuts without repeats and without -1; a cut is a barrier when any of its repeats was one."""
    cuts: list[int] = []
    walls: list[bool] = []
    for token, barrier in zip(tokens.tolist(), barriers, strict=True):
        if cuts and token == cuts[-1]:
            walls[-1] = walls[-1] or barrier
        elif token > 0:
            cuts.append(token)
            walls.append(barrier)
    return cuts, walls


def pack(
    encoded: EncodedDocument, cuts: Sequence[int], barriers: Sequence[bool], max_tokens: int, min_tokens: int
) -> list[int]:
    """The first token of every unit but the first: pieces between ``cuts``, joined while they fit ``max_tokens``.

    A unit ends at a barrier unless it holds fewer than ``min_tokens``; then it is joined to what follows. A piece that
    is too long is cut by ``hard_cut``.
    """
    total = len(encoded.token_starts)
    units: list[int] = []
    first = 0
    edges = [0, *cuts]
    ends = [*cuts, total]
    walls = [False, *barriers]
    for edge, end, barrier in zip(edges, ends, walls, strict=True):
        size = edge - first
        if end - first <= max_tokens and not (barrier and size >= min_tokens):
            continue
        too_long = end - edge > max_tokens
        if size > 0 and not (size < min_tokens and too_long):
            units.append(edge)
            first = edge
        while end - first > max_tokens:
            cut = hard_cut(encoded, first, end, max_tokens)
            if cut >= end:
                break
            units.append(cut)
            first = cut
    if units and total - first < min_tokens and total - (units[-2] if len(units) > 1 else 0) <= max_tokens:
        units.pop()
    return units


def hard_cut(encoded: EncodedDocument, first: int, end: int, max_tokens: int) -> int:
    """The token where the unit that begins at ``first`` ends, at most ``max_tokens`` later, in a piece up to ``end``.

    The piece is shared out evenly; a line end is preferred, then white space, then the end of a clause, then any place
    that parts no character. One visible character that is longer than the cap is cut between its code points.
    """
    remaining = end - first
    aim = -(-remaining // -(-remaining // max_tokens))
    starts = encoded.token_starts[first : first + aim + 1].tolist()
    text, floor = encoded.document.text, starts[0] if first else 0
    best, best_rank = 0, -1
    for offset in range(aim, aim // 2, -1):
        place = starts[offset]
        if place == starts[offset - 1]:
            continue
        rank = _rank(text, place)
        if rank > best_rank and may_cut(text, place, floor):
            best, best_rank = offset, rank
            if rank == _BY_LINE:
                break
    return first + best if best else last_cut(encoded, first, max_tokens)


def last_cut(encoded: EncodedDocument, first: int, max_tokens: int) -> int:
    """The last token at most ``max_tokens`` after ``first`` where a cut parts no character, else no code point.

    A single code point of more tokens than the cap is kept whole: then the token after it.
    """
    starts = encoded.token_starts[first : first + max_tokens + 1].tolist()
    text, floor = encoded.document.text, starts[0] if first else 0
    new = [offset for offset in range(len(starts) - 1, 0, -1) if starts[offset] > starts[offset - 1]]
    for offset in new:
        if may_cut(text, starts[offset], floor):
            return first + offset
    for offset in new:
        if not is_pair(text[starts[offset] - 1], text[starts[offset]]):
            return first + offset
    after = int(np.searchsorted(encoded.token_starts, starts[-1], side="right"))
    if after < len(encoded.token_starts) and is_pair(*_around(text, int(encoded.token_starts[after]))):
        after = int(np.searchsorted(encoded.token_starts, encoded.token_starts[after], side="right"))
    return after


def tile(encoded: EncodedDocument, units: Sequence[int]) -> tuple[Span, ...]:
    """The spans whose first tokens are 0 and ``units``: they cover the text exactly; none for an empty text."""
    end = len(encoded.document.text)
    if end == 0:
        return ()
    places = [0, *encoded.token_starts[np.asarray(units, dtype=np.int64)].tolist(), end]
    return tuple(Span(start, stop) for start, stop in zip(places, places[1:], strict=False))


def _rank(text: str, place: int) -> int:
    """How good a place for a cut is, seen from the two characters around it."""
    before, after = _around(text, place)
    if before in _LINE_ENDS:
        return _BY_LINE
    if before.isspace() or after.isspace():
        return _BY_SPACE
    return _BY_CLAUSE if before in _CLAUSE_ENDS else _ANYWHERE


def _around(text: str, place: int) -> tuple[str, str]:
    return text[place - 1 : place], text[place : place + 1]
