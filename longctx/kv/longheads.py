"""LongHeads (arXiv 2402.10685): every KV head reads its own few chunks, moved together into the trained window.

Owns the chunks' representations and which are read. All keys are kept; the context itself is read through the chunks,
so that it may be longer than the model was trained for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from longctx.errors import BadOption, ModelError
from longctx.keys import EVERYTHING, Asked, Choice, Index, LayerKeys, Turn
from longctx.kv import _budget
from longctx.kv._scores import pooled

_DEFAULT = 2048  # slots, where neither budget nor keep is given


@dataclass(frozen=True, slots=True)
class LongHeads:
    """Reads ``budget`` slots (2048, or the share ``keep``): chunks of ``window`` tokens, first and last ones always.

    A chunk stands for itself by a sum of its keys, weighted by what the mean of its own attention outputs attends to
    (2402.10685, section 3.2). ``budget`` belongs well below the trained window: half of it works, all of it does not.
    With ``move`` the chosen chunks seem to stand right before the new tokens; without it, where they are.
    """

    lossless: ClassVar[bool] = False
    grows: ClassVar[bool] = True

    budget: int | None = None
    keep: float | None = None
    window: int = 256
    move: bool = True

    def __post_init__(self) -> None:
        _budget.check(self.budget, self.keep, "longheads")
        if self.window < 1:
            raise BadOption(f"window={self.window} must be at least 1.")

    def slots(self, tokens: int) -> int:
        budget = _DEFAULT if self.budget is None and self.keep is None else self.budget
        # the first chunk, the last whole one and the one that has begun
        return _budget.slots(tokens, budget, self.keep, 3 * self.window - 1, "longheads")

    def index(self, layer: LayerKeys, budget: int, before: Index | None = None) -> Index:
        assert layer.turn is not None
        tokens = layer.tokens
        done = 0 if before is None or "chunks" not in before.tensors else before.tensors["chunks"].shape[2]
        first, last = done * self.window, tokens // self.window * self.window
        fresh = last - first
        if not fresh:
            return Index(tokens, budget, None, {} if before is None else before.tensors)
        if layer.queries.shape[1] < tokens - first:
            raise ModelError(f"layer {layer.layer}: a chunk of {self.window} tokens is not read in one piece.")
        queries = layer.queries[:, layer.queries.shape[1] - (tokens - first) :][:, :fresh]
        made = _represented(queries, layer.keys[:, first:last], layer.values[:, first:last], layer, self.window)
        chunks = made if not done or before is None else torch.cat((before.tensors["chunks"], made), 2)
        return Index(tokens, budget, None, {"chunks": chunks})

    def settle(self, indices: Sequence[Index]) -> list[Index]:
        return list(indices)

    def choose(self, index: Index, asked: Asked) -> Choice:
        if index.tokens <= index.budget:
            return EVERYTHING
        assert asked.turn is not None
        chunks = index.tensors["chunks"]  # [kv_heads, groups, chunks, dim]
        count, begun = chunks.shape[2], index.tokens % self.window
        best = self._best(asked, chunks, (index.budget - begun) // self.window)
        within = torch.arange(self.window, device=best.device)
        slots = (best.unsqueeze(-1) * self.window + within).flatten(2)
        open_slots = torch.arange(count * self.window, index.tokens, device=best.device)
        slots = torch.cat((slots, open_slots.expand(*slots.shape[:2], -1)), 2)
        if not self.move:
            return Choice(slots)
        places = torch.arange(index.tokens - slots.shape[2], index.tokens, device=slots.device)
        return Choice(slots, places=places.expand_as(slots))

    def _best(self, asked: Asked, chunks: Tensor, count: int) -> Tensor:
        """``count`` chunks [batch, kv_heads, count] in their order, the first and the last among them."""
        rows = _unmoved(asked, chunks.shape[1])
        likely = pooled((rows @ chunks.float().transpose(-1, -2)).flatten(2, 3), asked)
        likely[..., 0] = likely[..., -1] = torch.inf
        return likely.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(-1).values

    def index_bytes(self, tokens: int, heads: int, kv_heads: int, dim: int, itemsize: int) -> int:
        return tokens // self.window * heads * dim * itemsize


def _represented(queries: Tensor, keys: Tensor, values: Tensor, layer: LayerKeys, window: int) -> Tensor:
    """Chunks by their keys: queries [heads, tokens, dim] of whole chunks, as [kv_heads, groups, chunks, dim]."""
    assert layer.turn is not None
    heads, tokens, dim = queries.shape
    kv_heads, count = len(keys), tokens // window
    own = queries.view(kv_heads, -1, count, window, dim).float()
    chunk_keys = keys.reshape(kv_heads, 1, count, window, dim).float()
    chunk_values = values.reshape(kv_heads, 1, count, window, -1).float()
    told = ((own @ chunk_keys.transpose(-1, -2)) * layer.scale).softmax(-1) @ chunk_values
    mean = told.mean(-2, keepdim=True)  # [kv_heads, groups, chunks, 1, dim]
    first = layer.tokens // window * window - tokens
    back = -(first + torch.arange(tokens, device=keys.device) // window * window)
    local = layer.turn(keys, back.expand(kv_heads, -1)).float().view(kv_heads, 1, count, window, dim)
    weights = ((mean @ local.transpose(-1, -2)) * layer.scale).softmax(-1)
    return (weights @ local).squeeze(-2).to(keys.dtype)


def _unmoved(asked: Asked, groups: int) -> Tensor:
    """The queries as they were before they were rotated, float32 [batch, kv_heads, groups, rows, dim]."""
    batch, kv_heads, folded, dim = asked.rows.shape
    count = folded // groups
    turn: Turn | None = asked.turn
    assert turn is not None
    positions = torch.arange(asked.position - count + 1, asked.position + 1, device=asked.rows.device)
    back = (asked.padding - positions.repeat(groups)).expand(batch, kv_heads, -1)
    return turn(asked.rows, back).float().view(batch, kv_heads, groups, count, dim)


PLUGIN = LongHeads
