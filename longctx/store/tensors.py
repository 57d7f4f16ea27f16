"""Arrays in the bytes of a safetensors file, held against what a reader expects before anything is made of them.

Owns the header: its size, names, dtypes and shapes. Knows no meaning of an array.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

_MOST_HEADER = 1 << 20


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def unpack(data: bytes, expected: Mapping[str, tuple[str, tuple[int | None, ...]]]) -> dict[str, NDArray[Any]]:
    """The arrays of ``data``: exactly those of ``expected``, name -> (dtype, shape); None stands for any length.

    Raises ValueError for everything else, before memory is taken for it.
    """
    header(data[: 8 + _MOST_HEADER])
    try:
        found = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no safetensors file ({error})") from error
    if found.keys() != expected.keys():
        raise ValueError(f"it holds {', '.join(sorted(found))} and not {', '.join(sorted(expected))}")
    for name, (dtype, shape) in expected.items():
        array = found[name]
        fits = len(shape) == array.ndim and all(
            want in (None, got) for want, got in zip(shape, array.shape, strict=True)
        )
        if array.dtype != np.dtype(dtype) or not fits:
            raise ValueError(f"{name} is {array.dtype} {array.shape} and not {dtype} {shape}")
    return found


def header(start: bytes) -> dict[str, Any]:
    """The header at the start of a safetensors file. Raises ValueError for one that no file of ours has."""
    size = int.from_bytes(start[:8], "little")
    if len(start) < 8 or not 2 <= size <= _MOST_HEADER:
        raise ValueError(f"its header claims {size:,} bytes, at most {_MOST_HEADER:,} are read")
    try:
        found = json.loads(start[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError("its header is no object")
    return found
