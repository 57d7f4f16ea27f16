"""Suffix arrays of a document's tokens in files, so that no later process sorts them again before it drafts copies.

Owns the file and the hash of the text that an array is of. Knows ``SuffixIndex`` by what it holds.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from longctx.store import files, tensors
from longctx.store.artifact import Artifact
from longctx.store.files import Entry

_FORMULA = 1  # what arrays are made by: another number where the same text gives another
_NAME = "order"


def key(text: NDArray[np.int32], longest: int) -> str:
    """A hash of all that the array of the ids ``text`` [tokens] by their first ``longest`` is made from."""
    digest = hashlib.sha256(f"{_FORMULA}|{longest}|".encode("ascii") + text.astype("<i4").tobytes())
    return f"copies {digest.hexdigest()}"


def pack(order: NDArray[np.int32]) -> bytes:
    """The bytes of an array's file."""
    return tensors.pack({_NAME: order})


def load(artifact: Artifact, text: NDArray[np.int32], longest: int) -> NDArray[np.int32] | None:
    """The stored array of ``key(text, longest)``, mapped from its file; None where there is none of that very text.

    Raises ArtifactError for a damaged one.
    """
    wanted = key(text, longest)
    entry = next((stored.file for stored in artifact.manifest.copies if stored.key == wanted), None)
    if entry is None:
        return None
    data = artifact.content(entry)
    if data is None:
        _gone(artifact, entry)
        return None
    try:
        _check(tensors.unpack(data, {_NAME: ("int32", (len(text),))})[_NAME])
        with safe_open(artifact.folder / entry.name, framework="pt") as file:
            found: NDArray[np.int32] = file.get_tensor(_NAME).numpy()
            return found
    except FileNotFoundError:  # a newer version swept it just now
        _gone(artifact, entry)
        return None
    except (SafetensorError, ValueError) as error:
        raise files.malformed(artifact.folder, entry, str(error)) from error


def _check(order: NDArray[np.int32]) -> None:
    """Raises ValueError where ``order`` [tokens] does not hold every place of a text once."""
    inside = ((order >= 0) & (order < len(order))).all()
    if not inside or (np.bincount(order, minlength=len(order)) != 1).any():
        raise ValueError(f"it does not hold each of the {len(order):,} places of its text once")


def _gone(artifact: Artifact, entry: Entry) -> None:
    artifact.warn(f"{entry.name} is gone from {artifact.folder}: where copies stand is sorted again.")
