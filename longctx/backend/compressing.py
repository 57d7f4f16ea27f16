"""Reads a context piece by piece and hands each layer's keys to a policy: the making of a compressed context.

Owns which layers can be compressed, the passes and their scratch memory. Knows no method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from longctx.backend.attention import TAP, _Rows
from longctx.backend.forks import Context, Held
from longctx.backend.slack import QUERIES, slack
from longctx.backend.slots import SlotCache
from longctx.backend.target import RowTarget
from longctx.errors import ModelError
from longctx.keys import LayerKeys
from longctx.protocols import KVPolicy, Progress

_SEEN = {"full_attention": "bounded", "sliding_attention": "left alone: sees a window"}


def kinds(model: PreTrainedModel) -> list[str]:
    """What each layer is, as transformers names it. Raises ModelError naming those that cannot be compressed."""
    found, _ = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    other = {number: kind for number, kind in enumerate(found) if kind not in _SEEN}
    if other:
        named = ", ".join(f"{number} ({kind})" for number, kind in other.items())
        raise ModelError(f"these layers of {type(model).__name__} keep no keys that could be chosen from: {named}.")
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

    def __init__(self, count: int) -> None:
        self.count = count
        self.last: dict[int, Tensor] = {}  # [heads, at most count, dim]
        self.scores: dict[int, tuple[float, float | None]] = {}

    def see(self, layer: int, rows: _Rows) -> None:
        self.scores[layer] = (rows.scaling, rows.softcap)
        new = rows.query[0, :, -self.count :] if self.count else rows.query[0, :, :0]
        before = self.last.get(layer)
        if before is not None and new.shape[1] < self.count:
            new = torch.cat((before, new), 1)[:, -self.count :]
        self.last[layer] = new.clone()


def read(
    model: PreTrainedModel, ids: Sequence[int], window: int, piece: int, progress: Progress | None = None
) -> tuple[SlotCache, Queries]:
    """The keys and values of ``ids`` as the model reads them with full attention, ``piece`` tokens a pass at most.

    The last ``window`` queries of every layer are kept too, and never fewer than estimates are measured on.
    """
    queries = Queries(max(window, QUERIES))
    target = RowTarget(model, len(ids), {TAP: queries})
    for at in range(0, len(ids), piece):
        part = ids[at : at + piece]
        target.score(part, range(-1, len(part) - 1), 1)
        target.commit(range(len(part)))
        if progress is not None:
            progress("context", target.length, len(ids))
    return target.cache, queries


@torch.inference_mode()
def indexed(
    cache: SlotCache, queries: Queries, policy: KVPolicy, budget: int, progress: Progress | None = None
) -> Context:
    """The context of what was read, for ``policy``; ``cache`` is empty afterwards, one layer after the other."""
    layers = []
    tokens = cache.get_seq_length()
    for number, window in enumerate(cache.windows):
        keys, values = cache.held(number)
        if window is not None:
            layers.append(Held(keys.clone(), values.clone(), None, window))
        else:
            layers.append(_bounded(number, keys, values, queries, policy, budget))
        cache.drop(number)
        if progress is not None:
            progress("index", number + 1, len(cache.windows))
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
