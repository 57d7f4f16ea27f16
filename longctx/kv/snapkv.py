"""SnapKV (arXiv 2404.14469): keeps the keys that the context's last queries attend to, and forgets the others.

Owns the vote. What a later question needs and the last tokens of the context did not is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from longctx.errors import BadOption
from longctx.keys import EVERYTHING, Asked, Choice, Index, LayerKeys
from longctx.kv import _budget, _ranges
from longctx.kv._scores import LOWEST, grouped, scores

_ALWAYS = "window"  # what is always read, in the words of the options


@dataclass(frozen=True, slots=True)
class SnapKV:
    """Keeps ``budget`` slots (or the share ``keep``) of every KV head: the last ``window`` and the best voted others.

    A key's votes are the attention it gets from the last ``window`` queries, summed, and averaged over ``kernel``
    neighbours (2404.14469, section 4); the query heads of one KV head vote together.
    """

    lossless: ClassVar[bool] = False
    grows: ClassVar[bool] = False

    budget: int | None = None
    keep: float | None = None
    window: int = 64
    kernel: int = 5

    def __post_init__(self) -> None:
        _budget.check(self.budget, self.keep, "snapkv")
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise BadOption(f"window={self.window} must be at least 1 and kernel={self.kernel} an odd number.")

    def slots(self, tokens: int) -> int:
        return _budget.slots(tokens, self.budget, self.keep, self.window, "snapkv", _ALWAYS)

    def shortfall(self, tokens: int) -> str:
        return _budget.shortfall(tokens, self.budget, self.keep, self.window, "snapkv", _ALWAYS)

    def reach(self, tokens: int, behind: int = 0) -> int:
        return tokens

    def index(self, layer: LayerKeys, budget: int, before: Index | None = None) -> Index:
        kv_heads, tokens, _ = layer.keys.shape
        count = layer.queries.shape[1]
        rows = scores(grouped(layer.queries, kv_heads), layer.keys, layer.scale, layer.softcap)
        places = torch.arange(tokens - count, tokens, device=rows.device)
        hidden = torch.arange(tokens, device=rows.device) > places[:, None]
        votes = rows.view(kv_heads, -1, count, tokens).masked_fill(hidden, LOWEST).softmax(-1).sum((1, 2))
        votes[:, tokens - count :] = 0
        smooth = F.avg_pool1d(votes[:, None], self.kernel, 1, self.kernel // 2)[:, 0]
        return Index(tokens, budget, _ranges.best(smooth, budget, 0, count))

    def settle(self, indices: Sequence[Index]) -> list[Index]:
        return list(indices)

    def choose(self, index: Index, asked: Asked) -> Choice:
        return EVERYTHING

    def index_bytes(self, tokens: int, heads: int, kv_heads: int, dim: int, itemsize: int) -> int:
        budget = self.slots(tokens)
        return kv_heads * (8 * budget - 2 * (tokens - budget) * dim * itemsize)


PLUGIN = SnapKV
