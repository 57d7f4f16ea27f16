"""Embeddings in blocks, each row beside a hash of the text it was made from.

Owns the arrays of a block. A block says by itself which texts it knows, so that an edited document, or a compile that
was interrupted, embeds only what is new. Knows no encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longctx.store import files, tensors
from longctx.store.files import Entry

_KEY_BYTES = 16


def key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_KEY_BYTES]


def pack(rows: NDArray[np.float32], texts: Sequence[str]) -> bytes:
    """The bytes of a block: ``rows`` [texts, dim] and the keys of ``texts``."""
    keys = np.frombuffer(b"".join(map(key, texts)), dtype=np.uint8).reshape(-1, _KEY_BYTES)
    return tensors.pack({"rows": rows.astype(np.float32), "keys": keys})


def unpack(data: bytes) -> tuple[NDArray[np.float32], list[bytes]]:
    """Rows [texts, dim] and keys of a block. Raises ValueError for anything else."""
    arrays = tensors.unpack(data, {"rows": ("float32", (None, None)), "keys": ("uint8", (None, _KEY_BYTES))})
    rows, keys = arrays["rows"], arrays["keys"]
    if len(rows) != len(keys) or not np.isfinite(rows).all():
        raise ValueError(f"it holds {len(rows)} embeddings for {len(keys)} texts, or one that is not finite")
    return rows, [row.tobytes() for row in keys]


def load(folder: Path, entry: Entry, check: bool = True) -> tuple[NDArray[np.float32], list[bytes]] | None:
    """Rows and keys of a stored block; None where its file is gone. Raises ArtifactError for a damaged one."""
    data = files.read(folder, entry, check)
    if data is None:
        return None
    try:
        return unpack(data)
    except ValueError as error:
        raise files.malformed(folder, entry, str(error)) from error
