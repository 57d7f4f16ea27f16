"""A plain cache of transformers over keys that this library has read: what its methods are measured beside.

Owns the copy. Knows no policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import DynamicCache, PreTrainedModel

from longctx.backend.forks import Held
from longctx.errors import CacheError


def stock_cache(model: PreTrainedModel, layers: Sequence[Held], tokens: int) -> DynamicCache:
    """A cache that the model fills itself from here on, as if it had read the ``tokens`` tokens of ``layers``."""
    kept = [number for number, held in enumerate(layers) if held.kept is not None]
    if kept:
        raise CacheError(f"layers {kept} keep states of their own and no keys, so no plain cache can be made of them.")
    cache: Any = DynamicCache(config=model.config)
    for number, held in enumerate(layers):
        cache.update(held.keys[None], held.values[None], number)
        if held.window is not None:  # it was given what its window holds, and has seen all
            cache.layers[number].cumulative_length = tokens
    made: DynamicCache = cache
    return made
