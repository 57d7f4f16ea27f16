"""How the rows of one pass see the cache and each other: what the attention function asks while a tree is verified.

Owns positions, windows and masks. Knows no token.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from longctx.backend import quick
from longctx.backend.parts import causal_part, fold, merge, part
from longctx.kernels import tile_queries

_SHORT = 6000  # rows times keys, up to which one call takes less time than the products of several


class Rows:
    """Rows behind ``start`` tokens of cache; row i stands below row ``parents[i]``, -1 for the end of the cache.

    ``windows`` has each layer's sliding window, None where a layer sees everything. ``positions`` are [rows].
    """

    def __init__(self, parents: Sequence[int], start: int, windows: Sequence[int | None], device: torch.device) -> None:
        self.start, self.windows = start, windows
        self.count = len(parents)
        self.is_chain = list(parents) == list(range(-1, self.count - 1))
        if self.is_chain:
            depths = torch.arange(self.count)
            self._seen: Tensor | None = None
        else:
            depth, seen = np.zeros(self.count, dtype=np.int64), np.eye(self.count, dtype=np.bool_)
            for row, parent in enumerate(parents):
                if parent >= 0:
                    depth[row] = depth[parent] + 1
                    seen[row] |= seen[parent]
            depths, self._seen = torch.from_numpy(depth), torch.from_numpy(seen).to(device)
        self.positions = start + depths.to(device)
        self._masks: dict[tuple[int | None, int], Tensor] = {}
        self._added: dict[tuple[int, int], Tensor] = {}
        self._laid: dict[int, Tensor] = {}

    def whole(self, layer: int) -> bool:
        """Whether every row sees every slot before the rows in ``layer``."""
        window = self.windows[layer]
        return window is None or self.start + self.count <= window

    def mask(self, layer: int, keys: int) -> Tensor | None:
        """bool [1, 1, rows, keys], the last keys being the rows' own; None where a causal mask says the same."""
        window = None if self.whole(layer) else self.windows[layer]
        if window is None and (self.count == 1 or (self.is_chain and keys == self.count)):
            return None
        if (window, keys) not in self._masks:
            self._masks[window, keys] = self._made(window, keys)
        return self._masks[window, keys][None, None]

    def short(self, keys: int) -> bool:
        """Whether ``at_once`` is the quickest way over ``keys`` keys: one call for a few rows, each with its mask."""
        return self.positions.device.type == "cpu" and self.count * keys <= _SHORT

    def at_once(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """What ``attend`` gives, by one product over all keys with the mask added."""
        batch, heads, count, _ = query.shape
        kv_heads, keys = key.shape[1], key.shape[2]
        groups = heads // kv_heads
        if (groups, keys) not in self._added:  # the same for every layer of a pass
            seen = self._made(None, keys).repeat(groups, 1)
            bias = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
            self._added[groups, keys] = bias.masked_fill_(~seen, torch.finfo(query.dtype).min)
        out = F.scaled_dot_product_attention(fold(query, kv_heads), key, value, self._added[groups, keys], scale=scale)
        return out.view(batch, heads, count, -1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of the rows over everything before them and over their own paths, as [batch, heads, rows, dim]."""
        batch, heads, count, dim = query.shape
        kv_heads, prefix = key.shape[1], key.shape[2] - count
        folded, groups = fold(query, kv_heads), heads // kv_heads
        if (found := quick.over(folded, key, value, scale, functools.partial(self._hidden, groups))) is not None:
            return found[0].to(query.dtype).view(batch, heads, count, -1)
        before = part(folded, key[:, :, :prefix], value[:, :, :prefix], scale)
        if self.is_chain:
            own = causal_part(query, key[:, :, prefix:], value[:, :, prefix:], scale)
        else:
            seen = self._own(groups)
            own = part(folded, key[:, :, prefix:], value[:, :, prefix:], scale, seen)
        return merge([before, own]).to(query.dtype).view(batch, heads, count, -1)

    def _own(self, groups: int) -> Tensor:
        """bool [groups * rows, rows]: which rows a row sees."""
        key = (-groups, self.count)
        if key not in self._masks:
            self._masks[key] = self._made(None, self.count).repeat(groups, 1)
        return self._masks[key]

    def _hidden(self, groups: int) -> Tensor:
        """The same as the kernel takes it."""
        if groups not in self._laid:
            self._laid[groups] = tile_queries.lay(self._own(groups))
        return self._laid[groups]

    def _made(self, window: int | None, keys: int) -> Tensor:
        device = self.positions.device
        seen = self._seen
        if seen is None:
            seen = torch.ones(self.count, self.count, dtype=torch.bool, device=device).tril_()
        prefix = keys - self.count
        mask = torch.cat((torch.ones(self.count, prefix, dtype=torch.bool, device=device), seen), 1)
        if window is not None:
            places = torch.cat((torch.arange(self.start - prefix, self.start, device=device), self.positions))
            mask &= places[None] > self.positions[:, None] - window
        return mask
