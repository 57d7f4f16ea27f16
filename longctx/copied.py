"""What a generation may copy from: the index over the tokens of documents, compiled before or cut into tokens here.

Knows no drafter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from longctx.backend.tokens import Tokens
from longctx.compiled import CompiledDocument
from longctx.errors import BadOption, CacheError
from longctx.indexing import documents_of
from longctx.suffixes import SuffixIndex
from longctx.types import Document, EncodedDocument

Source = Document | Sequence[Document] | CompiledDocument | None

_LOOKED_AT = 32  # first tokens of a compiled document, made again to see whose they are
_SEAM = 8  # of them at the end that a cut may have changed


def copies_of(source: Source, tokenizer: Any) -> SuffixIndex | None:
    """Where the ends of an answer stand in ``source``; None for none.

    Raises BadOption for documents that are not compiled where there is no tokenizer, and CacheError for ones that were
    compiled with another.
    """
    if source is None:
        return None
    if isinstance(source, CompiledDocument):
        _check(source.encoded[0], tokenizer)
        return source.copies
    documents = documents_of(source)
    if tokenizer is None:
        raise BadOption("a document that is not compiled needs tokenizer= to become tokens.")
    return SuffixIndex(np.concatenate([Tokens(tokenizer).encode(one).token_ids for one in documents]))


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
