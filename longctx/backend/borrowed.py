"""What is in a cache of transformers that somebody else made: how many tokens, and whether anybody will look at it.

Knows no model.
"""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache

from longctx.errors import CacheError


def held(cache: Any) -> int:
    """Tokens in ``cache``. Raises CacheError where it holds a state that does not say of how many."""
    if not all(getattr(cache, "is_linear", (False,))):
        return int(cache.get_seq_length())
    if cache.layers and cache.has_previous_state():
        raise CacheError("the cache holds a state of unknown length: give an empty cache, or none, and the whole text.")
    return 0


def untouched(cache: Any) -> bool:
    """Whether a cache is one that generate made by itself, which nobody will look at again."""
    return type(cache) is DynamicCache and not getattr(cache, "_is_user_defined", False) and not held(cache)
