"""The summary of a segment in a file of its own, so that of an edited document only new segments are read.

Owns the file and the hash of all that a summary is made from. Knows that it is three tensors, and not what they mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save
from torch import Tensor

from longctx.store import files, tensors
from longctx.store.files import Entry

Parts = tuple[Tensor, Tensor, Tensor]
_FORMULA = 1  # what summaries are made by: another number where the same keys give others
_NAMES = ("representation", "low", "high")


def key(
    model: str, prefix: Sequence[int], ids: Sequence[int], units: Sequence[int], pairs: Sequence[tuple[int, int]]
) -> str:
    """A hash of all that a segment's summary is computed from; ``units`` are the tokens of each of its units."""
    heads = ",".join(f"{layer}.{head}" for layer, head in pairs)
    lists = "|".join(",".join(map(str, numbers)) for numbers in (prefix, ids, units))
    digest = hashlib.sha256(f"{_FORMULA}|{model}|{heads}|{lists}".encode("ascii"))
    return f"summary {digest.hexdigest()}"


def pack(parts: Parts) -> bytes:
    """The bytes of a summary's file."""
    return save({name: part.cpu().contiguous() for name, part in zip(_NAMES, parts, strict=True)})


def unpack(data: bytes, dtype: torch.dtype) -> Parts:
    """The tensors of a summary, each [rows, heads, dim] and finite. Raises ValueError for anything else."""
    tensors.header(data)
    try:
        found = load_tensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"it is no safetensors file ({error})") from error
    if found.keys() != set(_NAMES):
        raise ValueError(f"it holds {', '.join(sorted(found))}")
    for name, part in found.items():
        if part.dtype != dtype or part.ndim != 3 or not part.isfinite().all():
            raise ValueError(f"{name} is {part.dtype} {tuple(part.shape)} and not {dtype}, or not finite")
    return found["representation"], found["low"], found["high"]


def load(folder: Path, entry: Entry, dtype: torch.dtype, check: bool = True) -> Parts | None:
    """The tensors of a stored summary; None where its file is gone. Raises ArtifactError for a damaged one."""
    data = files.read(folder, entry, check)
    if data is None:
        return None
    try:
        return unpack(data, dtype)
    except ValueError as error:
        raise files.malformed(folder, entry, str(error)) from error
