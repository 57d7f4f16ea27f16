"""A document's text, tokens and units as arrays and back.

Owns what has to be true of them: tokens begin inside the text in order, units tile it, and each holds the tokens that
begin in it. Knows no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longctx.store import tensors
from longctx.store.manifest import StoredDocument, StoredPage
from longctx.types import Document, EncodedDocument, Page, Unit

_NO_CONTEXT = -1


def pack(encoded: EncodedDocument, units: Sequence[Unit]) -> bytes:
    """The bytes of a document's file: text, token ids and starts, and its own ``units``."""
    rows = [(u.start, u.end, u.first, u.last, *(u.context or (_NO_CONTEXT, _NO_CONTEXT))) for u in units]
    return tensors.pack(
        {
            "text": np.frombuffer(encoded.document.text.encode("utf-8", "surrogatepass"), dtype=np.uint8),
            "token_ids": encoded.token_ids.astype(np.int32),
            "token_starts": encoded.token_starts.astype(np.int64),
            "units": np.array(rows, dtype=np.int64).reshape(-1, 6),
        }
    )


def unpack(data: bytes, stored: StoredDocument, number: int, first: int) -> tuple[EncodedDocument, list[Unit]]:
    """Document ``number`` of an artifact, whose units are counted from ``first``. Raises ValueError where they lie."""
    expected: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "text": ("uint8", (None,)),
        "token_ids": ("int32", (stored.tokens,)),
        "token_starts": ("int64", (stored.tokens,)),
        "units": ("int64", (stored.units, 6)),
    }
    arrays = tensors.unpack(data, expected)
    text = arrays["text"].tobytes().decode("utf-8", "surrogatepass")
    if len(text) != stored.characters:
        raise ValueError(f"its text has {len(text):,} characters and not {stored.characters:,}")
    _check_tokens(arrays["token_ids"], arrays["token_starts"], len(text))
    _check_units(arrays["units"], arrays["token_starts"], len(text))
    _check_pages(stored.pages, len(text))
    document = Document(
        stored.id,
        text,
        tuple(Page(page.number, page.start, page.end, page.label) for page in stored.pages),
        stored.kind,
        stored.language,
        stored.warnings,
    )
    units = [
        Unit(first + at, number, start, end, begin, stop, None if left == _NO_CONTEXT else (left, right))
        for at, (start, end, begin, stop, left, right) in enumerate(arrays["units"].tolist())
    ]
    return EncodedDocument(document, arrays["token_ids"], arrays["token_starts"]), units


def pages(document: Document) -> tuple[StoredPage, ...]:
    return tuple(StoredPage(page.number, page.start, page.end, page.label) for page in document.pages)


def _check_tokens(ids: NDArray[Any], starts: NDArray[Any], characters: int) -> None:
    if not len(ids) or ids.min() < 0:
        raise ValueError("it has no tokens, or one below 0")
    if starts[0] != 0 or starts[-1] > characters or (np.diff(starts) < 0).any():
        raise ValueError("its tokens do not begin in order inside the text")


def _check_units(units: NDArray[Any], starts: NDArray[Any], characters: int) -> None:
    if not len(units):
        raise ValueError("it has no units")
    begin, end = units[:, 0], units[:, 1]
    if begin[0] != 0 or end[-1] != characters or (begin[1:] != end[:-1]).any() or (begin >= end).any():
        raise ValueError("its units do not tile the text")
    edges = np.searchsorted(starts, units[:, :2], side="left")
    if (edges != units[:, 2:4]).any():
        raise ValueError("its units do not hold the tokens that begin in them")
    context = units[units[:, 4] != _NO_CONTEXT][:, 4:]
    if len(context) and ((context[:, 0] < 0) | (context[:, 0] > context[:, 1]) | (context[:, 1] > characters)).any():
        raise ValueError("the heading of a unit lies outside the text")


def _check_pages(found: Sequence[StoredPage], characters: int) -> None:
    if any(not 0 <= page.start <= page.end <= characters for page in found):
        raise ValueError("a page lies outside the text")
