"""Random keys: what any choice has to be better than. A baseline for tests and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from longctx.keys import Asked, Choice, Index, LayerKeys
from longctx.kv import _budget, _ranges


@dataclass(frozen=True, slots=True)
class Random:
    """``budget`` slots (or the share ``keep``), drawn once for every layer and KV head; ``sinks`` and ``recent`` stay.

    The same ``seed`` draws the same slots.
    """

    lossless: ClassVar[bool] = False
    grows: ClassVar[bool] = False
    window: ClassVar[int] = 0

    budget: int | None = None
    keep: float | None = None
    sinks: int = 4
    recent: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        _budget.check(self.budget, self.keep, "random")
        _budget.check_ends(self.sinks, self.recent, "random")

    def slots(self, tokens: int) -> int:
        return _budget.slots(tokens, self.budget, self.keep, self.sinks + self.recent, "random")

    def shortfall(self, tokens: int) -> str:
        return _budget.shortfall(tokens, self.budget, self.keep, self.sinks + self.recent, "random")

    def reach(self, tokens: int, behind: int = 0) -> int:
        return tokens

    def index(self, layer: LayerKeys, budget: int, before: Index | None = None) -> Index:
        generator = torch.Generator().manual_seed(self.seed * 4096 + layer.layer)
        drawn = torch.rand(len(layer.keys), layer.tokens, generator=generator)
        slots = _ranges.best(drawn, budget, self.sinks, self.recent).to(layer.keys.device)
        return Index(layer.tokens, budget, None, {"slots": slots})

    def settle(self, indices: Sequence[Index]) -> list[Index]:
        return list(indices)

    def choose(self, index: Index, asked: Asked) -> Choice:
        return Choice(index.tensors["slots"].expand(len(asked.rows), -1, -1))

    def index_bytes(self, tokens: int, heads: int, kv_heads: int, dim: int, itemsize: int) -> int:
        return 8 * kv_heads * self.slots(tokens)


PLUGIN = Random
