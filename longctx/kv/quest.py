"""Quest (arXiv 2406.10774): pages of neighbouring keys, ranked by the highest score that any key in them could have.

Owns the pages' bounds. Reads whole pages; its bounds are no estimate of what was left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from longctx.errors import BadOption
from longctx.keys import EVERYTHING, Asked, Choice, Index, LayerKeys
from longctx.kv import _budget, _ranges
from longctx.kv._scores import pooled

_ALWAYS = "sinks and recent, and up to the end of a page"


@dataclass(frozen=True, slots=True)
class Quest:
    """At most ``budget`` slots (or the share ``keep``) in pages of ``page``; the last ``recent`` are always read.

    A page's bound is the sum over dimensions of the larger of query times least and query times greatest key value
    (2406.10774, algorithm 1). Pages are chosen for each KV head by the mean over its queries.
    """

    lossless: ClassVar[bool] = False
    grows: ClassVar[bool] = False
    window: ClassVar[int] = 0

    budget: int | None = None
    keep: float | None = None
    page: int = 16
    sinks: int = 0
    recent: int = 16

    def __post_init__(self) -> None:
        _budget.check(self.budget, self.keep, "quest")
        _budget.check_ends(self.sinks, self.recent, "quest")
        if self.page < 1:
            raise BadOption(f"page={self.page} must be at least 1.")

    def slots(self, tokens: int) -> int:
        return _budget.slots(tokens, self.budget, self.keep, self._forced, "quest", _ALWAYS)

    def shortfall(self, tokens: int) -> str:
        return _budget.shortfall(tokens, self.budget, self.keep, self._forced, "quest", _ALWAYS)

    @property
    def _forced(self) -> int:
        """Slots that are always read, and what may be missing to a page."""
        return self.sinks + self.recent + self.page - 1

    def reach(self, tokens: int, behind: int = 0) -> int:
        return tokens

    def index(self, layer: LayerKeys, budget: int, before: Index | None = None) -> Index:
        inner = layer.keys[:, self.sinks : layer.tokens - self.recent]
        kv_heads, tokens, dim = inner.shape
        short = -tokens % self.page
        padded = torch.cat((inner, inner[:, -1:].expand(-1, short, -1)), 1).view(kv_heads, -1, self.page, dim)
        least, greatest = padded.amin(2), padded.amax(2)
        return Index(layer.tokens, budget, None, {"least": least, "greatest": greatest})

    def settle(self, indices: Sequence[Index]) -> list[Index]:
        return list(indices)

    def choose(self, index: Index, asked: Asked) -> Choice:
        if index.budget >= index.tokens:
            return EVERYTHING
        forced = _ranges.ends(index.tokens, self.sinks, self.recent, asked.rows.device)
        least, greatest = index.tensors["least"].float(), index.tensors["greatest"].float()
        rows = asked.rows.float() * asked.scale
        # a positive query value takes the greatest, a negative one the least
        bounds = rows.clamp_min(0) @ greatest.transpose(-1, -2) + rows.clamp_max(0) @ least.transpose(-1, -2)
        likely = pooled(bounds.softmax(-1), asked)  # [batch, kv_heads, pages]
        count = (index.budget - len(forced)) // self.page
        best = likely.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(-1).values
        return self._pages(best, forced, index.tokens - self.recent)

    def _pages(self, pages: Tensor, forced: Tensor, last: int) -> Choice:
        slots = (self.sinks + pages * self.page).unsqueeze(-1) + torch.arange(self.page, device=pages.device)
        flat = slots.flatten(2)
        # pages ascend, and the last one may be short
        return Choice(*_ranges.behind(forced, flat.clamp_max(last - 1), (flat < last).sum(-1)))

    def index_bytes(self, tokens: int, heads: int, kv_heads: int, dim: int, itemsize: int) -> int:
        return -(-tokens // self.page) * kv_heads * 2 * dim * itemsize


PLUGIN = Quest
