"""What is in a cache of transformers: how many tokens and bytes, and whether anybody will look at it.

Knows no model.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache

from longctx.errors import CacheError


def held(cache: Any) -> int:
    """Tokens in ``cache``. Raises CacheError where it holds a state that does not say of how many."""
    if not all(getattr(cache, "is_linear", (False,))):
        return int(cache.get_seq_length())
    if cache.layers and cache.has_previous_state():
        raise CacheError("the cache holds a state of unknown length: give an empty cache, or none, and the whole text.")
    return 0


def size(cache: Any) -> int:
    """Bytes of the keys, values and states in ``cache``, reserved ones included."""
    return sum(layer.nbytes if hasattr(layer, "nbytes") else _size(vars(layer)) for layer in cache.layers)


def _size(found: Any) -> int:
    """Bytes of the tensors in what a layer holds, which may be kept by name or in a row."""
    if isinstance(found, Tensor):
        return found.nbytes
    if isinstance(found, dict):
        return sum(map(_size, found.values()))
    return sum(map(_size, found)) if isinstance(found, list | tuple) else 0


def inferred(cache: Any) -> bool:
    """Whether something in ``cache`` was made in inference mode, outside of which it cannot be written to."""
    return any(map(_inferred, map(vars, getattr(cache, "layers", ()))))


def _inferred(found: Any) -> bool:
    if isinstance(found, Tensor):
        return found.is_inference()
    found = list(found.values()) if isinstance(found, dict) else found
    return isinstance(found, list | tuple) and any(map(_inferred, found))


def handed_back(cache: Any) -> None:
    """Its layers keep no more tokens than they must, from here on, whatever a drafted answer told them."""
    for layer in getattr(cache, "layers", ()):
        if hasattr(layer, "record_past"):
            layer.record_past = False


def untouched(cache: Any) -> bool:
    """Whether a cache is one that generate made by itself, which nobody will look at again.

    One that moves its keys out of the model's memory was asked for by name.
    """
    if type(cache) is not DynamicCache or getattr(cache, "_is_user_defined", False):
        return False
    return not getattr(cache, "offloading", False) and not held(cache)
