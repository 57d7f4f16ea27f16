"""What a generation may copy from: the tokens of documents, compiled before or cut into tokens here, and their index.

Owns the way from a token of all documents to a character of one. Knows no drafter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from longctx.backend.tokens import Tokens
from longctx.compiled import CompiledDocument
from longctx.errors import BadOption, CacheError
from longctx.generated import Passage, Stats, located
from longctx.indexing import documents_of
from longctx.suffixes import SuffixIndex
from longctx.types import Document, EncodedDocument

Source = Document | Sequence[Document] | CompiledDocument | None

_LOOKED_AT = 32  # first tokens of a compiled document, made again to see whose they are
_SEAM = 8  # of them at the end that a cut may have changed


@dataclass(frozen=True, slots=True)
class Texts:
    """Documents one behind the other: their tokens are those of ``index``."""

    index: SuffixIndex
    encoded: tuple[EncodedDocument, ...]

    def located(self, stats: Stats) -> Stats:
        """``stats`` with the places of what was copied; a run over two documents is two copies."""
        return replace(stats, copies=located(stats.copied, list(self._passages())) if stats.copied else ())

    def _passages(self) -> Iterator[Passage]:
        first = 0
        for encoded in self.encoded:
            yield Passage(encoded.document.id, first, np.append(encoded.token_starts, len(encoded.document.text)))
            first += len(encoded.token_ids)


def copies_of(source: Source, tokenizer: Any) -> Texts | None:
    """``source`` as tokens, with the index of where the ends of an answer stand; None for none.

    Raises BadOption for documents that are not compiled where there is no tokenizer, and CacheError for ones that were
    compiled with another.
    """
    if source is None:
        return None
    if isinstance(source, CompiledDocument):
        _check(source.encoded[0], tokenizer)
        return Texts(source.copies, source.encoded)
    documents = documents_of(source)
    if tokenizer is None:
        raise BadOption("a document that is not compiled needs tokenizer= to become tokens.")
    encoded = tuple(Tokens(tokenizer).encode(one) for one in documents)
    return Texts(SuffixIndex(np.concatenate([one.token_ids for one in encoded])), encoded)


def _check(encoded: EncodedDocument, tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):  # none, or one that cannot have made these tokens
        return
    held = encoded.token_ids[:_LOOKED_AT]
    text = encoded.document.text
    if len(encoded.token_ids) > _LOOKED_AT:
        text, held = text[: int(encoded.token_starts[_LOOKED_AT])], held[:-_SEAM]
    again = Tokens(tokenizer).encode(Document.from_text(text, encoded.document.id), at_once=True).token_ids
    if again[: len(held)].tolist() != held.tolist():
        raise CacheError(
            f"document {encoded.document.id!r} was compiled with another tokenizer than this "
            f"{type(tokenizer).__name__}: copies of it would be other words. Compile it with a reader of this model."
        )
