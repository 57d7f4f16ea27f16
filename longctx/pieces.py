"""Pieces of code units: what may be embedded of them besides their whole texts, and the one score that comes of it.

SEA (arXiv 2208.11271) without its training: every unit of code is cut the same way, all vectors have length one, and
the best counts. Owns where pieces are cut and how cosines are joined. Knows neither an encoder nor a grammar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longctx.types import EncodedDocument, Unit

MOST = 8  # pieces of one unit: a unit of any length takes at most that many vectors more, and one of its signature


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces of all units, each distinct text once.

    Piece ``i`` belongs to unit ``units[i]`` and is ``texts[rows[i]]``; the signature of unit ``signed[i]`` is
    ``texts[signatures[i]]``. Units of prose have neither.
    """

    texts: tuple[str, ...]
    units: NDArray[np.intp]  # [pieces]
    rows: NDArray[np.intp]  # [pieces]
    signed: NDArray[np.intp]  # [units with a signature]
    signatures: NDArray[np.intp]  # [units with a signature]

    def score(self, whole: NDArray[np.float32], found: NDArray[np.float32], signature: float) -> NDArray[np.float32]:
        """One score for every unit, [units], of the cosines of whole texts [units] and of ``texts``.

        The best of whole text and pieces, the share ``signature`` of which gives way to the signature's cosine. A unit
        without pieces and signature has the cosine of its whole text, to the bit.
        """
        values = whole.copy()
        np.maximum.at(values, self.units, found[self.rows])
        values[self.signed] += np.float32(signature) * (found[self.signatures] - values[self.signed])
        return values


def pieces(encoded: Sequence[EncodedDocument], units: Sequence[Unit], tokens: int) -> Pieces:
    """The pieces, of about ``tokens`` tokens, of those ``units`` that are of a document of code."""
    texts: dict[str, int] = {}
    owners: list[int] = []
    rows: list[int] = []
    signed: list[int] = []
    signatures: list[int] = []
    for unit in units:
        document = encoded[unit.document].document
        if document.kind != "code":
            continue
        signature = "" if unit.context is None else document.text[slice(*unit.context)]
        for start, end in parts(encoded[unit.document], unit, tokens):
            text = document.text[start:end]
            if not text.isspace():
                owners.append(unit.index)
                rows.append(texts.setdefault(text, len(texts)))
        if signature:
            signed.append(unit.index)
            signatures.append(texts.setdefault(signature, len(texts)))
    return Pieces(tuple(texts), *(np.array(found, dtype=np.intp) for found in (owners, rows, signed, signatures)))


def parts(encoded: EncodedDocument, unit: Unit, tokens: int) -> list[tuple[int, int]]:
    """Ranges of characters that tile ``unit``, ``MOST`` at most; none where all of it is one piece.

    As many as pieces of ``tokens`` tokens need, in even shares. Within half a share of each share's end, the line that
    is indented least begins the next piece: a statement begins there, whatever the language.
    """
    count = min(MOST, -(-unit.tokens // tokens))
    if count < 2:
        return []
    lines = _lines(encoded, unit)
    share = unit.tokens / count
    cuts: list[int] = []
    for number in range(1, count):
        aim = unit.first + number * share
        near = [line for line in lines if aim - share / 2 < line.token <= aim + share / 2]
        if near:
            cuts.append(min(near, key=lambda line: (line.indent, abs(line.token - aim))).start)
    edges = [unit.start, *cuts, unit.end]
    return list(zip(edges, edges[1:], strict=False)) if cuts else []


@dataclass(frozen=True, slots=True)
class _Line:
    """Where a line that is not blank begins, in characters and in tokens, and by how much it is indented."""

    start: int
    token: int
    indent: int


def _lines(encoded: EncodedDocument, unit: Unit) -> list[_Line]:
    """The lines of ``unit`` but its first."""
    found: list[_Line] = []
    start = unit.start
    for line in encoded.document.text[unit.start : unit.end].splitlines(keepends=True):
        if start > unit.start and not line.isspace():
            found.append(_Line(start, encoded.token_at(start), len(line) - len(line.lstrip())))
        start += len(line)
    return found
