"""Reads a context through the policy itself: each piece sees what the policy chooses of the pieces before it.

Owns what becomes of a piece once it is read. For policies that bound the reading too, and so for contexts that are
longer than the model's window. Knows no method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longctx.backend.attaching import attached
from longctx.backend.attention import TAP
from longctx.backend.behind import Behind
from longctx.backend.bounded import BoundedCache
from longctx.backend.compressing import check_numbers, kinds, settled, stored
from longctx.backend.forks import Context, Held
from longctx.backend.queries import Queries
from longctx.backend.rotary import turns
from longctx.backend.slots import windows
from longctx.keys import LayerKeys, Turn
from longctx.protocols import KVPolicy, Progress


def grow(
    model: PreTrainedModel, ids: Sequence[int], policy: KVPolicy, budget: int, progress: Progress | None = None
) -> Context:
    """The context of ``ids``, read in pieces of as many tokens as the policy wants queries of."""
    found = kinds(model)
    growing = [
        _Growing(number, window, turn, len(ids))
        for number, (window, turn) in enumerate(zip(windows(model.config), turns(model, found), strict=True))
    ]
    context, behind = Context(0, tuple(layer.empty() for layer in growing), policy), Behind(model)
    for at in range(0, len(ids), policy.window):
        piece = ids[at : at + policy.window]
        queries, cache = Queries(len(piece), model.dtype), BoundedCache(context)
        with torch.inference_mode(), attached(model):
            _pass(model, behind, piece, at, cache, queries)
            layers = tuple(layer.grown(context, cache, queries, budget) for layer in growing)
        context = Context(at + len(piece), layers, policy)
        if progress is not None:
            progress("context", context.tokens, len(ids))
    return Context(context.tokens, settled(context.layers, policy), policy)


def _pass(
    model: PreTrainedModel, behind: Behind, piece: Sequence[int], at: int, cache: BoundedCache, queries: Queries
) -> None:
    positions = torch.arange(at, at + len(piece), device=model.device)
    if behind.shorter(piece, positions, 1, cache, **{TAP: queries}) is None:
        ids, extra = torch.tensor([list(piece)], device=model.device), {TAP: queries}
        model(ids, position_ids=positions[None], past_key_values=cache, use_cache=True, logits_to_keep=1, **extra)


@dataclass(slots=True)
class _Growing:
    """One layer's keys and values while a context grows: appended in place where the policy keeps them all."""

    number: int
    window: int | None
    turn: Turn
    reserve: int
    keys: Tensor | None = None
    values: Tensor | None = None

    def empty(self) -> Held:
        nothing = torch.empty(0, 0, 0)
        return Held(nothing, nothing, None, self.window, self.turn)

    def grown(self, context: Context, cache: BoundedCache, queries: Queries, budget: int) -> Held:
        """The layer with the tokens of the pass over ``cache``."""
        before = context.layers[self.number]
        keys, values = cache.new(self.number)
        check_numbers(self.number, keys, values, context.tokens + queries.count)
        if self.window is not None:
            left = max(0, keys.shape[1] - self.window + 1)
            return Held(keys[:, left:].clone(), values[:, left:].clone(), None, self.window, self.turn)
        count, positions = keys.shape[1], None
        if before.index is not None and before.index.stored is not None:
            fresh = torch.arange(context.tokens, context.tokens + count, device=keys.device)
            positions = torch.cat((before.index.stored, fresh.expand(len(keys), -1)), 1)
            keys, values = torch.cat((before.keys, keys), 1), torch.cat((before.values, values), 1)
        elif context.tokens:
            keys, values = self._appended(keys, values, context.tokens)
        scale, softcap = queries.scores[self.number]
        own = queries.last[self.number]
        whole = context.tokens + count == self.reserve
        layer = LayerKeys(self.number, keys, values, own, scale, softcap, self.turn, positions, whole)
        index = context.policy.index(layer, budget, before.index)
        if index.stored is not None:
            slots = index.stored if positions is None else torch.searchsorted(positions, index.stored)
            keys, values = stored(keys, slots), stored(values, slots)
        elif not context.tokens:  # only now: a policy that keeps a part needs no room for all
            keys, values = self._appended(keys, values, 0)
        return Held(keys, values, index, None, self.turn)

    def _appended(self, keys: Tensor, values: Tensor, at: int) -> tuple[Tensor, Tensor]:
        """All keys and values so far, as views of buffers made once."""
        if self.keys is None or self.values is None:
            self.keys = keys.new_empty(len(keys), self.reserve, keys.shape[2])
            self.values = values.new_empty(len(values), self.reserve, values.shape[2])
        stop = at + keys.shape[1]
        self.keys[:, at:stop], self.values[:, at:stop] = keys, values
        return self.keys[:, :stop], self.values[:, :stop]
