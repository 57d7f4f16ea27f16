"""A book in memory and the same one stored, for every test of stored books."""

from __future__ import annotations

from pathlib import Path

import pytest
from stored_books import DOCUMENT, reader_of

from longctx import Reader
from longctx.compiled import CompiledDocument


@pytest.fixture(scope="module")
def reader() -> Reader:
    return reader_of()


@pytest.fixture(scope="module")
def book(reader: Reader) -> CompiledDocument:
    return reader.compile(DOCUMENT)


@pytest.fixture(scope="module")
def stored(book: CompiledDocument, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with segments, to be copied and damaged."""
    path = tmp_path_factory.mktemp("stored") / "book.lctx"
    book.save(path, segment_kv="disk")
    return path
