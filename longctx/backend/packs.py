"""The caches of several requests behind one pass: each request's rows go to its own, and see nothing of the others.

No request is padded to the length of another, and what each accepts moves none of the others. Knows no tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from longctx.backend.caches import CacheLayer
from longctx.backend.rows import Rows
from longctx.backend.slots import SlotCache


class _Split(CacheLayer):  # type: ignore[no-untyped-call]
    """Puts the new keys and values of a layer into each request's own."""

    def __init__(self, index: int, owner: PackCache) -> None:
        super().__init__()
        self.index, self.owner = index, owner

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.owner.put(self.index, key_states, value_states)
        return key_states, value_states


class PackCache(Cache):
    """``caches`` for one pass over their ``rows`` side by side, [1, all rows]."""

    def __init__(self, rows: Sequence[Rows], caches: Sequence[SlotCache]) -> None:
        self._rows, self._caches = rows, caches
        edges = [0, *accumulate(own.count for own in rows)]
        self._places = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
        self._seen: dict[int, list[tuple[Tensor, Tensor]]] = {}
        super().__init__(layers=[_Split(layer, self) for layer in range(len(caches[0].layers))])

    def put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Afterwards each request's cache ends with its rows of [1, kv_heads, all rows, dim]."""
        self._seen[layer] = [
            cache.update(keys[:, :, place], values[:, :, place], layer)
            for cache, place in zip(self._caches, self._places, strict=True)
        ]

    def close(self) -> None:
        """Lets go of the requests: the pack and its layers know each other, and would keep them for a while."""
        self._rows, self._caches, self.layers = (), (), []
        self._seen.clear()

    def parts(self, layer: int, query: Tensor) -> Iterator[tuple[Rows, Tensor, Tensor, Tensor]]:
        """Each request's rows, their queries, and all keys and values of its own cache."""
        for rows, place, (key, value) in zip(self._rows, self._places, self._seen[layer], strict=True):
            yield rows, query[:, :, place], key, value
