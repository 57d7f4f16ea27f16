"""Toy encoders for the tests of splitters: token starts as real tokenizers give them, without any tokenizer."""

from __future__ import annotations

import re

import numpy as np

from longctx.types import Document, EncodedDocument, Span

_WORDS = re.compile(r" ?\w++| ?[^\w\s]++|\s+(?!\S)|\s+")


def by_words(text: str, kind: str = "text", language: str = "") -> EncodedDocument:
    """One token per word with the space before it, per run of punctuation, per run of white space."""
    return _encoded(text, [match.start() for match in _WORDS.finditer(text)], kind, language)


def by_bytes(text: str, kind: str = "text", language: str = "") -> EncodedDocument:
    """One token per byte of UTF-8: an emoji is four tokens that begin at one character."""
    widths = [len(character.encode("utf-8", "surrogatepass")) for character in text]
    return _encoded(text, np.repeat(np.arange(len(text)), widths).tolist(), kind, language)


def _encoded(text: str, starts: list[int], kind: str, language: str) -> EncodedDocument:
    ids = np.arange(len(starts), dtype=np.int32)
    return EncodedDocument(
        Document(id="test", text=text, kind=kind, language=language), ids, np.asarray(starts, dtype=np.int64)
    )


def pieces(encoded: EncodedDocument, spans: tuple[Span, ...]) -> list[str]:
    """The texts of ``spans``, which must tile the document."""
    found = [encoded.document.text[span.start : span.end] for span in spans]
    assert "".join(found) == encoded.document.text
    return found
