"""Small artifacts made without a model: a character is a token, a line is a unit, two lines are a segment."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from longctx.store import copies, texts, vectors
from longctx.store.manifest import (
    Manifest,
    Origin,
    SegmentKV,
    StoredDocument,
    StoredOrder,
    StoredSegment,
    Summaries,
    Vectors,
)
from longctx.store.writer import Writer
from longctx.suffixes import LONGEST, SuffixIndex
from longctx.types import Document, EncodedDocument, Page, Unit

ORIGIN = Origin("tiny", "torch.float32", "m", "t", "c", "f", "Lines()", 64, ("longctx 0",))


def encoded(text: str, id: str = "a") -> tuple[EncodedDocument, list[Unit]]:
    """A document with its tokens and units; every second line has the first as its heading."""
    lines = text.splitlines(keepends=True)
    edges = np.cumsum([0, *map(len, lines)]).tolist()
    units = [
        Unit(i, 0, start, end, start, end, (0, len(lines[0])) if i % 2 else None)
        for i, (start, end) in enumerate(zip(edges, edges[1:], strict=False))
    ]
    ids = np.array([ord(c) for c in text], dtype=np.int32)
    document = Document(id, text, (Page(1, 0, len(text), "i"),), "text", "", ("a warning",))
    return EncodedDocument(document, ids, np.arange(len(text), dtype=np.int64)), units


def write(folder: Path, *documents: str) -> Manifest:
    """An artifact of texts with embeddings, an index and files of segments, published; the names are a, b, …"""
    with Writer(folder) as writer:
        made = assemble(writer, *documents)
        writer.publish(made)
    return made


def assemble(writer: Writer, *documents: str) -> Manifest:
    """The same, up to the moment of publishing."""
    stored, ranges, shown = [], [], []
    for number, text in enumerate(documents):
        own, units = encoded(text, "abcdefgh"[number])
        pages = texts.pages(own.document)
        entry = writer.add("document", texts.pack(own, units))
        size = (len(text), len(own.token_ids), len(units))
        stored.append(StoredDocument(own.document.id, "text", "", ("a warning",), pages, *size, entry))
        first = len(shown)
        ranges += [(first + at, first + min(at + 2, len(units))) for at in range(0, len(units), 2)]
        shown += [text[unit.start : unit.end] for unit in units]
    rows = np.array([[len(line), line.count("e"), 1] for line in shown], dtype=np.float32)
    blocks = (writer.add("vectors", vectors.pack(rows, shown), "vectors e 0"),)
    keys = [f"segment {shown[first].strip()}" for first, _ in ranges]
    files = [writer.known(key) or writer.add("segment", key.encode() * 300, key) for key in keys]
    kv = SegmentKV("disk", "exact", (), tuple(map(StoredSegment, keys, files)))
    sums = [f"summary {key}" for key in keys]
    files = [writer.known(key) or writer.add("summary", key.encode() * 20, key) for key in sums]
    summed = Summaries((), tuple(map(StoredSegment, sums, files)))
    index = SuffixIndex([ord(c) for text in documents for c in text])
    key = copies.key(index.tokens, LONGEST)
    order = StoredOrder(key, writer.known(key) or writer.add("copies", copies.pack(index.order), key))
    return Manifest(ORIGIN, tuple(stored), tuple(ranges), (), Vectors("e", 3, blocks), kv, summed, (order,))
