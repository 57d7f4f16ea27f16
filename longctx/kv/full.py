"""Full attention: every key of the context is read, out of a preallocated cache, with keys never repeated.

The baseline: what all other policies are held against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from longctx.keys import EVERYTHING, Asked, Choice, Index, LayerKeys


@dataclass(frozen=True, slots=True)
class Full:
    """Has no options."""

    lossless: ClassVar[bool] = True
    grows: ClassVar[bool] = False
    window: ClassVar[int] = 0

    def slots(self, tokens: int) -> int:
        return tokens

    def shortfall(self, tokens: int) -> str:
        return ""

    def reach(self, tokens: int, behind: int = 0) -> int:
        return tokens

    def index(self, layer: LayerKeys, budget: int, before: Index | None = None) -> Index:
        return Index(layer.tokens, budget)

    def settle(self, indices: Sequence[Index]) -> list[Index]:
        return list(indices)

    def choose(self, index: Index, asked: Asked) -> Choice:
        return EVERYTHING

    def index_bytes(self, tokens: int, heads: int, kv_heads: int, dim: int, itemsize: int) -> int:
        return 0


PLUGIN = Full
