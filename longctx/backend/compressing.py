"""Reads a context piece by piece and hands each layer's keys to a policy: the making of a compressed context.

Owns which layers can be compressed, the passes and their scratch memory. Knows no method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from longctx.backend.attention import TAP, _Rows, installed
from longctx.backend.forks import Context, Held
from longctx.backend.slack import QUERIES, slack
from longctx.backend.target import RowTarget
from longctx.errors import ModelError
from longctx.keys import LayerKeys
from longctx.protocols import KVPolicy, Progress

_SEEN = {"full_attention": "bounded", "sliding_attention": "left alone: sees a window"}


def kinds(model: PreTrainedModel, partial: bool = False) -> list[str]:
    """What each layer is, as transformers names it.

    Raises ModelError naming the layers that cannot be compressed, where not ``partial`` and some other layer can.
    """
    found, _ = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    other = {number: kind for number, kind in enumerate(found) if kind not in _SEEN}
    if other and not (partial and "full_attention" in found):
        named = ", ".join(f"{number} ({kind})" for number, kind in other.items())
        raise ModelError(
            f"these layers of {type(model).__name__} keep no keys that could be chosen from: {named}. "
            f"allow_partial=True leaves them as they are, for policies that do not bound the reading of the text too."
        )
    return list(found)


def possible(model: PreTrainedModel) -> dict[str, list[int]]:
    """What can be done with the cache of which layers, in words."""
    found, _ = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    words: dict[str, list[int]] = {}
    for number, kind in enumerate(found):
        words.setdefault(_SEEN.get(kind, f"not possible: {kind}"), []).append(number)
    return words


class Queries:
    """Stands in a Tap's place and keeps the last queries of every layer, and how their scores are made."""

    def __init__(self, count: int, dtype: torch.dtype) -> None:
        self.count, self.dtype = count, dtype
        self.last: dict[int, Tensor] = {}  # [heads, at most count, dim]
        self.scores: dict[int, tuple[float, float | None]] = {}

    def see(self, layer: int, rows: _Rows) -> None:
        self.scores[layer] = (rows.scaling, rows.softcap)
        new = rows.query[0, :, -self.count :] if self.count else rows.query[0, :, :0]
        before = self.last.get(layer)
        if before is not None and new.shape[1] < self.count:
            new = torch.cat((before, new), 1)[:, -self.count :]
        self.last[layer] = new.to(self.dtype, copy=True)  # a pass may compute in a wider format


@torch.inference_mode()
def read(
    model: PreTrainedModel, ids: Sequence[int], window: int, piece: int, progress: Progress | None = None
) -> tuple[list[Held], Queries]:
    """The layers of ``ids`` as the model reads them with full attention, ``piece`` tokens a pass at most.

    The last ``window`` queries of every layer are kept too, and never fewer than estimates are measured on.
    """
    queries = Queries(max(window, QUERIES), model.dtype)
    if set(kinds(model, True)) - {*_SEEN}:
        return _read_by_stock(model, ids, piece, queries, progress), queries
    target = RowTarget(model, len(ids), {TAP: queries})
    for at in range(0, len(ids), piece):
        part = ids[at : at + piece]
        target.score(part, range(-1, len(part) - 1), 1)
        target.commit(range(len(part)))
        if progress is not None:
            progress("context", target.length, len(ids))
    layers = []
    for number, seen in enumerate(target.cache.windows):
        keys, values = target.cache.held(number)
        layers.append(Held(keys, values, None) if seen is None else Held(keys.clone(), values.clone(), None, seen))
    return layers, queries


def _read_by_stock(
    model: PreTrainedModel, ids: Sequence[int], piece: int, queries: Queries, progress: Progress | None
) -> list[Held]:
    """The layers of a model some of which keep no keys, in a cache of transformers."""
    cache: Any = DynamicCache(config=model.config)
    with installed(model):
        for at in range(0, len(ids), piece):
            part = torch.tensor([list(ids[at : at + piece])], device=model.device)
            model(part, past_key_values=cache, use_cache=True, logits_to_keep=1, **{TAP: queries})
            if progress is not None:
                progress("context", at + part.shape[1], len(ids))
    layers = []
    for layer, kind in zip(cache.layers, kinds(model, True), strict=True):
        if kind not in _SEEN:
            nothing = torch.empty(0, 0, 0)
            layers.append(Held(nothing, nothing, None, kept=layer))
            continue
        layers.append(Held(layer.keys[0], layer.values[0], None, layer.sliding_window if layer.is_sliding else None))
    return layers


@torch.inference_mode()
def indexed(
    layers: list[Held],
    queries: Queries,
    tokens: int,
    policy: KVPolicy,
    budget: int,
    progress: Progress | None = None,
) -> Context:
    """The context of what was read, for ``policy``. ``layers`` are replaced one after the other, to free their keys."""
    for number, raw in enumerate(layers):
        if raw.window is None and raw.kept is None:
            layers[number] = _bounded(number, raw.keys, raw.values, queries, policy, budget)
        if progress is not None:
            progress("index", number + 1, len(layers))
    known = [_measured(number, held, policy, queries) for number, held in enumerate(settled(layers, policy))]
    return Context(tokens, tuple(known), policy)


def _bounded(number: int, keys: Tensor, values: Tensor, queries: Queries, policy: KVPolicy, budget: int) -> Held:
    """One layer that sees everything, with what is stored of it in the order of the policy."""
    last = queries.last[number]
    layer = LayerKeys(number, keys, values, last[:, max(0, last.shape[1] - policy.window) :], *queries.scores[number])
    index = policy.index(layer, budget)
    if index.stored is not None:
        keys, values = stored(keys, index.stored), stored(values, index.stored)
    return Held(keys, values, index)


def _measured(number: int, held: Held, policy: KVPolicy, queries: Queries) -> Held:
    """The layer with how far the policy's estimates are off in it."""
    if held.index is None:
        return held
    return replace(held, slack=slack(policy, held, queries.last[number], *queries.scores[number]))


def settled(layers: Sequence[Held], policy: KVPolicy) -> tuple[Held, ...]:
    """The layers with their indices as the policy settles them once all are known."""
    indices = iter(policy.settle([held.index for held in layers if held.index is not None]))
    return tuple(held if held.index is None else replace(held, index=next(indices)) for held in layers)


def stored(states: Tensor, order: Tensor) -> Tensor:
    """[kv_heads, tokens, dim] at long [kv_heads, slots]."""
    return states.gather(1, order.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
