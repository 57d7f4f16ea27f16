"""Full attention: every key of the context is read, out of a preallocated cache, with keys never repeated.

The baseline: what all other policies are held against.
"""

from __future__ import annotations

from dataclasses import dataclass

from longctx.keys import EVERYTHING, Asked, Choice, Index, LayerKeys


@dataclass(frozen=True, slots=True)
class Full:
    """Has no options."""

    @property
    def lossless(self) -> bool:
        return True

    @property
    def grows(self) -> bool:
        return False

    @property
    def window(self) -> int:
        return 0

    def slots(self, tokens: int) -> int:
        return tokens

    def index(self, layer: LayerKeys, budget: int, before: Index | None = None) -> Index:
        return Index(layer.tokens, budget)

    def choose(self, index: Index, asked: Asked) -> Choice:
        return EVERYTHING

    def index_bytes(self, tokens: int, kv_heads: int, dim: int, itemsize: int) -> int:
        return 0


PLUGIN = Full
