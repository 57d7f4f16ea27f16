"""The best keys of every pass, found by scoring all of them: the bound of what any choice of so many keys can reach.

Saves nothing. For tests and tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from longctx.keys import Asked, Choice, Index, LayerKeys, Unread
from longctx.kv import _budget, _ranges
from longctx.kv._scores import LOWEST, pooled, scores


@dataclass(frozen=True, slots=True)
class Oracle:
    """``budget`` slots (or the share ``keep``) with the most attention, in the mean over a KV head's queries."""

    lossless: ClassVar[bool] = False
    grows: ClassVar[bool] = False
    window: ClassVar[int] = 0

    budget: int | None = None
    keep: float | None = None
    sinks: int = 0
    recent: int = 0

    def __post_init__(self) -> None:
        _budget.check(self.budget, self.keep, "oracle")
        _budget.check_ends(self.sinks, self.recent, "oracle")

    def slots(self, tokens: int) -> int:
        return _budget.slots(tokens, self.budget, self.keep, self.sinks + self.recent, "oracle")

    def shortfall(self, tokens: int) -> str:
        return _budget.shortfall(tokens, self.budget, self.keep, self.sinks + self.recent, "oracle")

    def reach(self, tokens: int, behind: int = 0) -> int:
        return tokens

    def index(self, layer: LayerKeys, budget: int, before: Index | None = None) -> Index:
        return Index(layer.tokens, budget)

    def settle(self, indices: Sequence[Index]) -> list[Index]:
        return list(indices)

    def choose(self, index: Index, asked: Asked) -> Choice:
        rows = scores(asked.rows, asked.keys, asked.scale, asked.softcap)
        slots = _ranges.best(pooled(rows.softmax(-1), asked), index.budget, self.sinks, self.recent)
        taken = torch.zeros_like(rows[:, :, 0], dtype=torch.bool).scatter(-1, slots, True)
        return Choice(slots, None, Unread(rows.masked_fill(taken[:, :, None], LOWEST).logsumexp(-1)))

    def index_bytes(self, tokens: int, heads: int, kv_heads: int, dim: int, itemsize: int) -> int:
        return 0


PLUGIN = Oracle
