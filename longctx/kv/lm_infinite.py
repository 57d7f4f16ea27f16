"""LM-Infinite (arXiv 2308.16137): the first tokens and the last ones, and no distance greater than the trained one.

Owns which tokens are kept while a context grows. Memory stays the same however long the text is; what is dropped is
lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from longctx.errors import BadOption
from longctx.keys import EVERYTHING, Asked, Choice, Index, LayerKeys
from longctx.kv import _budget


@dataclass(frozen=True, slots=True)
class LmInfinite:
    """Of the context the first ``sinks`` tokens and the last are kept, ``budget`` (or the share ``keep``) in all.

    The sinks seem to stand at most ``ceiling`` positions before the last token read (None: ``budget``), as in section 3
    of 2308.16137. The context itself is read so, in pieces of ``window`` tokens.
    """

    lossless: ClassVar[bool] = False
    grows: ClassVar[bool] = True

    budget: int | None = None
    keep: float | None = None
    sinks: int = 10
    ceiling: int | None = None
    window: int = 256

    def __post_init__(self) -> None:
        _budget.check(self.budget, self.keep, "lm_infinite")
        if self.sinks < 0 or self.window < 1 or (self.ceiling is not None and self.ceiling < 1):
            raise BadOption(
                f"sinks={self.sinks} must not be negative, and window={self.window} and ceiling={self.ceiling} at "
                "least 1."
            )

    def slots(self, tokens: int) -> int:
        return _budget.slots(tokens, self.budget, self.keep, self.sinks, "lm_infinite")

    def shortfall(self, tokens: int) -> str:
        return _budget.shortfall(tokens, self.budget, self.keep, self.sinks, "lm_infinite")

    def index(self, layer: LayerKeys, budget: int, before: Index | None = None) -> Index:
        tokens, device = layer.tokens, layer.keys.device
        first = min(self.sinks, tokens, budget)
        last = max(first, tokens - (budget - first))
        kept = torch.cat((torch.arange(first, device=device), torch.arange(last, tokens, device=device)))
        return Index(tokens, budget, kept.repeat(len(layer.keys), 1))

    def settle(self, indices: Sequence[Index]) -> list[Index]:
        return list(indices)

    def choose(self, index: Index, asked: Asked) -> Choice:
        assert index.stored is not None
        ceiling = index.budget if self.ceiling is None else self.ceiling
        furthest = torch.as_tensor(asked.position - asked.padding - ceiling, device=index.stored.device)
        count = index.stored.shape[1]
        if bool((furthest <= index.stored.min()).all()):
            return EVERYTHING
        kv_heads = len(index.stored)
        slots = torch.arange(count, device=index.stored.device).expand(len(asked.rows), kv_heads, -1)
        return Choice(slots, places=torch.maximum(index.stored, furthest).expand_as(slots))

    def index_bytes(self, tokens: int, heads: int, kv_heads: int, dim: int, itemsize: int) -> int:
        budget = self.slots(tokens)
        return kv_heads * (8 * budget - 2 * (tokens - budget) * dim * itemsize)


PLUGIN = LmInfinite
