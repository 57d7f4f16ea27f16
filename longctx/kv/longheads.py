"""LongHeads (arXiv 2402.10685): every KV head reads its own few chunks, moved together into the trained window.

Owns what stands for a chunk and which chunks are read. All keys are kept; the context itself is read through the
chunks, so that it may be longer than the model was trained for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from longctx.errors import BadOption, ModelError
from longctx.keys import EVERYTHING, Asked, Choice, Index, LayerKeys
from longctx.kv import _budget
from longctx.kv._scores import most, placed, pooled, scores

_DEFAULT = 2048  # slots, where neither budget nor keep is given

_ALWAYS = "three times window"  # the first chunk, the last whole one and the one that has begun


@dataclass(frozen=True, slots=True)
class LongHeads:
    """Reads ``budget`` slots (2048, or the share ``keep``): chunks of ``window`` tokens, first and last ones always.

    With ``by="pages"`` a chunk is as likely as the best of its pages of ``page`` tokens, each by the mean of its keys,
    for that of the pass's queries that wants it most, put right behind the chunk. With ``by="outputs"``, as published
    (2402.10685, section 3.2), it stands for itself by a sum of its keys, weighted by what the mean of its own attention
    outputs attends to, and queries are unrotated.
    ``budget`` belongs well below the trained window: half of it works, all of it does not. With ``move`` the chosen
    chunks seem to stand right before the new tokens; without it, where they are.
    """

    lossless: ClassVar[bool] = False
    grows: ClassVar[bool] = True

    budget: int | None = None
    keep: float | None = None
    window: int = 256
    move: bool = True
    by: Literal["pages", "outputs"] = "pages"
    page: int = 16

    def __post_init__(self) -> None:
        _budget.check(self.budget, self.keep, "longheads")
        if min(self.window, self.page) < 1:
            raise BadOption(f"window={self.window} and page={self.page} must be at least 1.")

    def slots(self, tokens: int) -> int:
        return _budget.slots(tokens, self._counted, self.keep, self._forced, "longheads", _ALWAYS)

    def shortfall(self, tokens: int) -> str:
        return _budget.shortfall(tokens, self._counted, self.keep, self._forced, "longheads", _ALWAYS)

    def reach(self, tokens: int, behind: int = 0) -> int:
        # what is read stands right before a piece of the text and before its end, and what follows moves away from it
        return min(tokens, self.slots(tokens - behind) + max(behind, self.window - 1)) if self.move else tokens

    @property
    def _counted(self) -> int | None:
        return _DEFAULT if self.budget is None and self.keep is None else self.budget

    @property
    def _forced(self) -> int:
        """The first chunk, the last whole one and the one that has begun."""
        return 3 * self.window - 1

    def index(self, layer: LayerKeys, budget: int, before: Index | None = None) -> Index:
        assert layer.turn is not None
        tokens = layer.tokens
        done = 0 if before is None or "chunks" not in before.tensors else before.tensors["chunks"].shape[2]
        first, last = done * self.window, tokens // self.window * self.window
        if first == last:
            return Index(tokens, budget, None, {} if before is None else before.tensors)
        keys, values = layer.keys[:, first:last], layer.values[:, first:last]
        starts = torch.arange(first, last, self.window, device=keys.device).repeat_interleave(self.window)
        local = self._chunks(layer.turn(keys, (-starts).expand(len(keys), -1)))
        if self.by == "pages":
            pages = [part.float().mean(-2) for part in torch.split(local, self.page, dim=-2)]
            made = torch.stack(pages, -2).to(keys.dtype)
        else:
            if layer.queries.shape[1] < tokens - first:
                raise ModelError(f"layer {layer.layer}: a chunk of {self.window} tokens is not read in one piece.")
            queries = layer.queries[:, layer.queries.shape[1] - (tokens - first) :][:, : last - first]
            own = self._chunks(queries).reshape(len(keys), -1, *local.shape[2:])
            made = _represented(own, self._chunks(keys), self._chunks(values), local, layer.scale).unsqueeze(-2)
        chunks = made if not done or before is None else torch.cat((before.tensors["chunks"], made), 2)
        return Index(tokens, budget, None, {"chunks": chunks})

    def settle(self, indices: Sequence[Index]) -> list[Index]:
        return list(indices)

    def choose(self, index: Index, asked: Asked) -> Choice:
        if index.tokens <= index.budget:
            return EVERYTHING
        assert asked.turn is not None
        chunks = index.tensors["chunks"]  # [kv_heads, 1, chunks, pages, dim]; outputs: [.., groups, chunks, 1, ..]
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

    def _chunks(self, states: Tensor) -> Tensor:
        """[heads, tokens, dim] of whole chunks as [heads, 1, chunks, window, dim]."""
        return states.reshape(len(states), 1, -1, self.window, states.shape[-1])

    def _best(self, asked: Asked, chunks: Tensor, count: int) -> Tensor:
        """``count`` chunks [batch, kv_heads, count] in their order, the first and the last among them."""
        if self.by == "pages":
            log = scores(placed(asked, self.window), chunks[:, 0].flatten(1, 2), asked.scale, asked.softcap)
            shares = log.view(*log.shape[:-1], *chunks.shape[2:4]).amax(-1).softmax(-1)
            likely = most(shares, asked)
        else:
            rows = placed(asked, 0)
            apart = rows.view(*rows.shape[:2], chunks.shape[1], -1, rows.shape[-1])
            likely = pooled((apart @ chunks[..., 0, :].float().transpose(-1, -2)).flatten(2, 3), asked)
        likely[..., 0] = likely[..., -1] = torch.inf
        return likely.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(-1).values

    def index_bytes(self, tokens: int, heads: int, kv_heads: int, dim: int, itemsize: int) -> int:
        each = kv_heads * -(-self.window // self.page) if self.by == "pages" else heads
        return tokens // self.window * each * dim * itemsize


def _represented(queries: Tensor, keys: Tensor, values: Tensor, local: Tensor, scale: float) -> Tensor:
    """Chunks by their keys, [kv_heads, groups, chunks, dim]; all are [kv_heads, 1 or groups, chunks, window, dim].

    ``local`` are the keys as they would stand if their chunk were the beginning of the text.
    """
    told = ((queries.float() @ keys.float().transpose(-1, -2)) * scale).softmax(-1) @ values.float()
    weights = ((told.mean(-2, keepdim=True) @ local.float().transpose(-1, -2)) * scale).softmax(-1)
    return (weights @ local.float()).squeeze(-2).to(keys.dtype)


PLUGIN = LongHeads
