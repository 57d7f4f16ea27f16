"""The cache of one generation: buffers made once, rows written in place, and rows that were not accepted taken back.

Owns slots and which tokens they hold. A sliding layer drops what no later token can see. Knows no tree and no method;
any attention implementation can read it, as every layer hands out plain views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from longctx.backend.anatomy import sharing
from longctx.backend.caches import CacheLayer
from longctx.errors import ModelError

_SPARE = 256  # slots by which a full buffer grows at least


class Slots(CacheLayer):  # type: ignore[no-untyped-call]
    """``keys`` and ``values`` [1, kv_heads, capacity, dim], of which the first ``used`` slots hold tokens.

    They are kept as ``dtype`` (None: as they come), and handed out as what comes.
    ``dropped`` tokens before them are gone: only of a layer with a ``window``, and only those no later row can see.
    """

    def __init__(self, reserve: int, window: int | None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.window, self.used, self.dropped = window, 0, 0
        self.dtype = dtype
        self.is_sliding = window is not None
        self._reserve = reserve if window is None else min(reserve, longest(window))

    @property
    def nbytes(self) -> int:
        """Of all slots, those that hold no token yet included."""
        return sum(states.nbytes for states in (self.keys, self.values) if states is not None)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        stop = self.used + key_states.shape[2]
        if self.keys is None or self.values is None:
            size = max(self._reserve, stop)
            self.keys, self.values = (_wider(s.to(self.dtype or s.dtype), 0, size) for s in (key_states, value_states))
        elif stop > self.keys.shape[2]:
            # of a layer with a window, what a pass needs is all it will ever need
            size = stop + _SPARE if self.is_sliding else max(stop + _SPARE, self.keys.shape[2] * 3 // 2)
            self.keys, self.values = _wider(self.keys, self.used, size), _wider(self.values, self.used, size)
        if self.keys.is_inference() and not torch.is_inference_mode_enabled():  # such are written in that mode only
            self.keys, self.values = self.keys.clone(), self.values.clone()
        self.keys[:, :, self.used : stop] = key_states
        self.values[:, :, self.used : stop] = value_states
        self.used = stop
        # a pass that computes in a wider format than is kept gets what it can compute with
        return self.keys[:, :, :stop].to(key_states.dtype), self.values[:, :, :stop].to(key_states.dtype)

    def keep(self, start: int, rows: Sequence[int]) -> None:
        """Of the tokens from logical position ``start`` on, only ``rows`` stay, in that order."""
        if self.keys is None or self.values is None:
            return
        first = start - self.dropped
        count = len(rows)
        if list(rows) != list(range(count)):
            index = first + torch.as_tensor(list(rows), device=self.keys.device)
            self.keys[:, :, first : first + count] = self.keys.index_select(2, index)
            self.values[:, :, first : first + count] = self.values.index_select(2, index)
        self.used = first + count
        if self.window is not None and self.used >= 2 * self.window:
            self._drop(self.used - self.window + 1)

    def _drop(self, count: int) -> None:
        assert self.keys is not None and self.values is not None
        left = self.used - count
        self.keys[:, :, :left] = self.keys[:, :, count : self.used].clone()
        self.values[:, :, :left] = self.values[:, :, count : self.used].clone()
        self.used, self.dropped = left, self.dropped + count

    def get_seq_length(self) -> int:
        return self.dropped + self.used

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used + query_length, self.dropped


class SlotCache(Cache):
    """The cache of a model whose layers all keep keys and values, kept as ``dtype`` (None: as they come).

    ``reserve`` slots are made before they are needed.
    """

    def __init__(self, config: Any, reserve: int, dtype: torch.dtype | None) -> None:
        self.windows = windows(config)
        self._slots = [Slots(reserve, window, dtype) for window in self.windows]
        super().__init__(layers=list(self._slots))

    def held(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [kv_heads, slots, dim] of a layer, as views: all tokens, or the last that a window sees."""
        slots = self._slots[layer]
        if slots.keys is None or slots.values is None:
            raise ModelError(f"layer {layer} has put no keys into the cache")
        first = 0 if slots.window is None else max(0, slots.used - slots.window + 1)
        return slots.keys[0, :, first : slots.used], slots.values[0, :, first : slots.used]

    def keep(self, start: int, rows: Sequence[int]) -> None:
        """Of the tokens from position ``start`` on, only ``rows`` (counted from there) stay, in that order."""
        for layer in self._slots:
            layer.keep(start, rows)


def longest(window: int, rows: int = 0) -> int:
    """The slots that a layer with this window makes at most, for passes of so many rows."""
    return 2 * window + rows + _SPARE


def windows(config: Any) -> tuple[int | None, ...]:
    """The sliding window of every layer, None for one that sees everything.

    A layer that looks at the keys of an earlier one has the window of its own kind.
    """
    config = config.get_text_config(decoder=True)
    layers: list[Any] = DynamicCache(config=config).layers
    found = [layer.sliding_window if getattr(layer, "is_sliding", False) else None for layer in layers]
    for number in sharing(config):
        found[number] = config.sliding_window if config.layer_types[number] == "sliding_attention" else None
    return tuple(found)


def _wider(states: Tensor, used: int, size: int) -> Tensor:
    batch, heads, _, dim = states.shape
    wider = states.new_empty(batch, heads, size, dim)
    wider[:, :, :used] = states[:, :, :used]
    return wider
