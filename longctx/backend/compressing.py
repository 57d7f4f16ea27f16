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
from longctx.backend.target import RowTarget
from longctx.errors import ModelError
from longctx.keys import LayerKeys
from longctx.protocols import KVPolicy, Progress

_BOUNDED = {"sliding_attention"}  # sees a window only: there is nothing to compress


def kinds(model: PreTrainedModel) -> list[str]:
    """What each layer is, as transformers names it. Raises ModelError naming those that cannot be compressed."""
    found, _ = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    other = {number: kind for number, kind in enumerate(found) if kind not in {"full_attention", *_BOUNDED}}
    if other:
        named = ", ".join(f"{number} ({kind})" for number, kind in other.items())
        raise ModelError(f"these layers of {type(model).__name__} keep no keys that could be chosen from: {named}.")
    return list(found)


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
    model: PreTrainedModel,
    ids: Sequence[int],
    policy: KVPolicy,
    budget: int,
    piece: int,
    progress: Progress | None = None,
) -> Context:
    """The context of ``ids`` as the model reads them with full attention, at most ``piece`` tokens a pass."""
    found = kinds(model)
    queries = Queries(policy.window)
    target = RowTarget(model, len(ids), {TAP: queries})
    for at in range(0, len(ids), piece):
        part = ids[at : at + piece]
        target.score(part, range(-1, len(part) - 1), 1)
        target.commit(range(len(part)))
        if progress is not None:
            progress("context", target.length, len(ids))
    windows = target.cache.windows
    layers = []
    with torch.inference_mode():
        for number in range(len(found)):
            keys, values = target.cache.held(number)
            if windows[number] is not None:
                layers.append(Held(keys.clone(), values.clone(), None, windows[number]))
                continue
            scale, softcap = queries.scores[number]
            layer = LayerKeys(number, keys, values, queries.last[number], scale, softcap)
            index = policy.index(layer, budget)
            if index.stored is not None:
                keys, values = stored(keys, index.stored), stored(values, index.stored)
            layers.append(Held(keys, values, index))
            target.cache.drop(number)
            if progress is not None:
                progress("index", number + 1, len(found))
    return Context(len(ids), settled(layers, policy), policy)


def settled(layers: Sequence[Held], policy: KVPolicy) -> tuple[Held, ...]:
    """The layers with their indices as the policy settles them once all are known."""
    indices = iter(policy.settle([held.index for held in layers if held.index is not None]))
    return tuple(held if held.index is None else replace(held, index=next(indices)) for held in layers)


def stored(states: Tensor, order: Tensor) -> Tensor:
    """[kv_heads, tokens, dim] at long [kv_heads, slots]."""
    return states.gather(1, order.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
