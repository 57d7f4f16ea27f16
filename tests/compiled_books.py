"""A short text with facts, a tiny reader and books of it not read yet, for the tests of compiled documents."""

from __future__ import annotations

from typing import Any

import tiny

from longctx import Reader
from longctx.compiled import CompiledDocument, Memory
from longctx.types import Document

TEXT = "".join(
    f"{name} keeps the {thing} in room {number}. The street was quiet that winter.\n\n"
    for number, (name, thing) in enumerate(
        [(n, t) for n in ("Mara", "Tobin", "Ilse") for t in ("ledger", "kettle", "lamp")]
    )
)
QUESTION = "Where is the kettle of Tobin?"


def tiny_reader() -> Reader:
    model = tiny.model("qwen3", num_hidden_layers=2)
    return Reader(model, tiny.tokenizer("system"), encoder=None, calibration=None, segment_tokens=64)


def book_of(reader: Reader, memory_bytes: int, document: Any = None) -> CompiledDocument:
    """A book that keeps at most ``memory_bytes`` of keys and values, with nothing read yet."""
    book = Reader(
        reader.model, reader.tokenizer, encoder=None, calibration=None, segment_tokens=64, segment_memory_bytes=0
    ).compile(document or Document.from_text(TEXT))
    book.memory = Memory(memory_bytes)
    return book
