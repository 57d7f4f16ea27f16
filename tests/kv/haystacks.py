"""A layer's keys in which one key is what the query looks for, and plain attention to hold others against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longctx.keys import Asked, Choice, Index, LayerKeys

KV_HEADS, GROUPS, DIM, SCALE = 2, 3, 16, 0.25


def tensors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def haystack(
    tokens: int, needle: int | None = None, seed: int = 0, softcap: float | None = None, window: int = 64
) -> LayerKeys:
    """Random keys; the key ``needle`` points where ``question`` looks, in every KV head."""
    keys = tensors(KV_HEADS, tokens, DIM, seed=seed)
    if needle is not None:
        keys[:, needle] = 3 * direction()
    values = tensors(KV_HEADS, tokens, DIM, seed=seed + 1)
    queries = tensors(KV_HEADS * GROUPS, min(tokens, window), DIM, seed=seed + 2)
    return LayerKeys(1, keys, values, queries, SCALE, softcap, turn=lambda keys, by: keys)


def direction() -> Tensor:
    found = tensors(DIM, seed=99)
    return 4 * found / found.norm()


def question(layer: LayerKeys, rows: int = 1, batch: int = 1, noise: float = 0.1, seed: int = 7) -> Asked:
    """Queries that look for the needle, each with some noise of its own."""
    asked = direction() + noise * tensors(batch, KV_HEADS, GROUPS * rows, DIM, seed=seed)
    return Asked(asked, layer.keys, SCALE, layer.softcap, layer.tokens + rows - 1, layer.turn, groups=GROUPS)


def put(layer: LayerKeys, index: Index, asked: Asked) -> Asked:
    """``asked`` of the keys as they are stored."""
    order = index.stored
    if order is None:
        return asked
    keys = layer.keys.gather(1, order.unsqueeze(-1).expand(-1, -1, DIM))
    return Asked(asked.rows, keys, asked.scale, asked.softcap, asked.position, asked.turn, groups=GROUPS)


def read(index: Index, choice: Choice, batch: int = 1) -> list[list[set[int]]]:
    """The tokens that each row of the batch and KV head reads."""
    found = []
    for row in range(batch):
        heads = []
        for head in range(KV_HEADS):
            count = index.tokens if index.stored is None else index.stored.shape[1]
            slots = torch.arange(count) if choice.slots is None else choice.slots[row, head]
            if choice.slots is not None and choice.read is not None:
                slots = slots[choice.read[row, head]]
            assert len(set(slots.tolist())) == len(slots), "a slot is read twice"
            tokens = slots if index.stored is None else index.stored[head, slots]
            heads.append(set(tokens.tolist()))
        found.append(heads)
    return found


def chosen(policy: Any, layer: LayerKeys, asked: Asked, budget: int | None = None) -> list[list[set[int]]]:
    """The tokens that ``policy`` reads of a layer for ``asked``."""
    index = policy.settle([policy.index(layer, policy.slots(layer.tokens) if budget is None else budget)])[0]
    return read(index, policy.choose(index, put(layer, index, asked)), len(asked.rows))


def masses(layer: LayerKeys, asked: Asked) -> Tensor:
    """The attention of every row over the context alone, float64 [batch, kv_heads, rows, tokens]."""
    logits = asked.rows.double() @ layer.keys.double().transpose(-1, -2) * asked.scale
    if asked.softcap is not None:
        logits = torch.tanh(logits / asked.softcap) * asked.softcap
    return logits
