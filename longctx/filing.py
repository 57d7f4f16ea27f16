"""What a compiled document holds that is no key or value, put into the files of an artifact: nothing is made twice.

Owns what of it a folder has already: embeddings by their text, suffix arrays by their tokens. Knows no model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longctx.compiled import CompiledDocument
from longctx.embeddings import PLAIN
from longctx.errors import ArtifactError
from longctx.store import copies as orders
from longctx.store import texts, vectors
from longctx.store.manifest import StoredDocument, StoredOrder, Vectors
from longctx.store.writer import Writer
from longctx.suffixes import LONGEST
from longctx.types import Unit


def documents(writer: Writer, book: CompiledDocument) -> tuple[StoredDocument, ...]:
    """The entry of every document, whose file is there afterwards."""
    own: list[list[Unit]] = [[] for _ in book.documents]
    for unit in book.units:
        own[unit.document].append(unit)
    found = []
    for encoded, units in zip(book.encoded, own, strict=True):
        d = encoded.document
        counts = (len(d.text), len(encoded.token_ids), len(units))
        entry = writer.add("document", texts.pack(encoded, units))
        found.append(StoredDocument(d.id, d.kind, d.language, d.warnings, texts.pages(d), *counts, entry))
    return tuple(found)


def embeddings(writer: Writer, book: CompiledDocument) -> tuple[Vectors | None, int]:
    """The embeddings of all units in files, and how many texts were embedded for it."""
    if book.why_no_embeddings:
        return None, 0
    own, shown = book.embeddings, book.embeddings.texts()
    fingerprint = own.encoder(PLAIN).fingerprint
    known = _known_vectors(writer, fingerprint)
    entries, blocks, made = [], [], 0
    for units, rows, new in own.embed(shown, known=lambda text: known.get(vectors.key(text))):
        data = vectors.pack(rows, shown[units.start : units.stop])
        entries.append(writer.add("vectors", data, f"vectors {fingerprint} {units.start}"))
        blocks.append(rows)
        made += new
    whole = np.concatenate(blocks)
    own.keep(whole)
    return Vectors(fingerprint, whole.shape[1], tuple(entries)), made


def copies(writer: Writer, book: CompiledDocument, folds: NDArray[np.int32] | None) -> tuple[StoredOrder, ...]:
    """The suffix arrays of ``book.copies`` in files, and of what ``folds`` make of it: drafting asks for both.

    They are of all tokens together, so that one more document makes them anew: merging new places into old ones would
    save less than a second for a million tokens.
    """
    found: dict[str, StoredOrder] = {}
    for index in (book.copies, *(() if folds is None else (book.copies.folded(folds),))):
        key = orders.key(index.tokens, LONGEST)
        entry = writer.known(key) or writer.add("copies", orders.pack(index.order), key)
        found[key] = StoredOrder(key, entry)
    return tuple(found.values())


def _known_vectors(writer: Writer, encoder: str) -> dict[bytes, NDArray[np.float32]]:
    """The embeddings that the artifact, or an interrupted compile of it, has already; a damaged block has none."""
    published = writer.published.vectors if writer.published is not None else None
    entries = [*published.blocks] if published is not None and published.encoder == encoder else []
    entries += writer.unpublished(f"vectors {encoder}").values()
    found: dict[bytes, NDArray[np.float32]] = {}
    for entry in dict.fromkeys(entries):
        try:
            block = vectors.load(writer.folder, entry)
        except ArtifactError:
            continue
        if block is not None:
            found |= dict(zip(block[1], block[0], strict=True))
    return found
