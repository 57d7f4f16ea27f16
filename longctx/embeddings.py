"""The embeddings of a compiled document: a vector for the text of every unit and, where asked for, for pieces of code.

Owns when they are made, when they come from files, and how near a question is to a unit. Knows the encoder by its
protocol only, and neither a document nor a selector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from longctx.pieces import Pieces
from longctx.protocols import Progress
from longctx.supplies import EncoderSource, Stored

PLAIN = 1.0  # the encoder's own temperature
EMBED_AT_ONCE = 1024  # texts of one block of embeddings: the same blocks whether they go to memory or to files


class Embeddings:
    """The vectors of ``texts``, one for every unit, and of the pieces of so many tokens; each made once."""

    def __init__(
        self,
        texts: Callable[[], Sequence[str]],
        pieces: Callable[[int], Pieces],
        encoder: EncoderSource,
        stored: Stored | None,
        progress: Callable[[], Progress | None],
    ) -> None:
        self.texts, self._pieces, self._progress = texts, pieces, progress
        self.encoder, self._stored = encoder, stored
        self._vectors: dict[float, NDArray[np.float32]] = {}
        self._of_pieces: dict[tuple[float, int], tuple[Pieces, NDArray[np.float32]]] = {}

    @property
    def nbytes(self) -> int:
        """Of all vectors at hand, mapped ones included."""
        pieces = (rows for _, rows in self._of_pieces.values())
        return sum(rows.nbytes for rows in (*self._vectors.values(), *pieces))

    def similarity(self, question: str, temperature: float, piece_tokens: int, signature: float) -> NDArray[np.float32]:
        """How near ``question`` is to every unit, [units]: the cosine, or the score of pieces of ``piece_tokens``."""
        whole = self.vectors(temperature)
        pieces, rows = self._vectors_of_pieces(temperature, piece_tokens) if piece_tokens else (None, whole)
        asked = self.encoder(temperature).encode([question])[0]
        values = np.asarray(whole @ asked, dtype=np.float32)
        return values if pieces is None else pieces.score(values, np.asarray(rows @ asked, np.float32), signature)

    def vectors(self, temperature: float = PLAIN) -> NDArray[np.float32]:
        """The embedding of every unit, [units, dim], of length one. Raises what its encoder raises."""
        if temperature not in self._vectors:
            found = None
            if self._stored is not None and temperature == PLAIN:
                found = self._stored.vectors(self.encoder(temperature).fingerprint)
            if found is None:
                found = np.concatenate([rows for _, rows, _ in self.embed(self.texts(), temperature)])
            self._vectors[temperature] = found
        return self._vectors[temperature]

    def embed(
        self,
        texts: Sequence[str],
        temperature: float = PLAIN,
        known: Callable[[str], NDArray[np.float32] | None] | None = None,
    ) -> Iterator[tuple[range, NDArray[np.float32], int]]:
        """The embeddings of ``texts`` in blocks: which texts, their rows [texts, dim], how many were made now.

        Texts that ``known`` has a row of are not embedded again; nothing is kept.
        """
        for first in range(0, len(texts), EMBED_AT_ONCE):
            block = range(first, min(first + EMBED_AT_ONCE, len(texts)))
            rows = [known(texts[at]) if known is not None else None for at in block]
            new = [at for at, row in zip(block, rows, strict=True) if row is None]
            if new:
                report = self._report(block, len(texts))
                made = self.encoder(temperature).encode([texts[at] for at in new], progress=report)
                for at, row in zip(new, made, strict=True):
                    rows[at - first] = row
            yield block, np.stack([row for row in rows if row is not None]), len(new)

    def keep(self, vectors: NDArray[np.float32]) -> None:
        """Later questions use ``vectors`` [units, dim] as the embeddings of the units."""
        self._vectors[PLAIN] = vectors

    def _vectors_of_pieces(self, temperature: float, tokens: int) -> tuple[Pieces, NDArray[np.float32]]:
        """The pieces of about ``tokens`` tokens, and the embeddings of their texts [texts, dim]."""
        if (temperature, tokens) not in self._of_pieces:
            found = self._pieces(tokens)
            made = [rows for _, rows, _ in self.embed(found.texts, temperature)]
            rows = np.concatenate([self.vectors(temperature)[:0], *made])  # prose has no pieces
            self._of_pieces[temperature, tokens] = found, rows
        return self._of_pieces[temperature, tokens]

    def _report(self, block: range, whole: int) -> Progress | None:
        """Tells of one block's embedding in texts of all blocks."""
        if (progress := self._progress()) is None:
            return None
        return lambda stage, done, total: progress(stage, block.start + len(block) * done // max(total, 1), whole)
