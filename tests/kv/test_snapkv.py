"""SnapKV: what the last queries look at stays, the rest is forgotten."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from haystacks import chosen, direction, haystack, question
from torch import Tensor

from longctx.errors import BadOption
from longctx.keys import LayerKeys
from longctx.kv.snapkv import SnapKV

POLICY = SnapKV(budget=40, window=8, kernel=1)


def watched(layer: LayerKeys, queries: Tensor) -> LayerKeys:
    return dataclasses.replace(layer, queries=queries)


def test_a_needle_survives_where_the_last_queries_looked_at_it_and_not_otherwise() -> None:
    layer = haystack(200, needle=77)
    looking = watched(layer, direction().expand(6, 8, -1))
    away = watched(layer, -direction().expand(6, 8, -1))
    for head in chosen(POLICY, looking, question(layer))[0]:
        assert 77 in head and set(range(192, 200)) <= head and len(head) == 40
    for head in chosen(POLICY, away, question(layer))[0]:
        assert 77 not in head


def test_the_votes_are_those_of_a_plain_softmax_with_a_causal_window() -> None:
    layer = haystack(60, seed=5)
    layer = watched(layer, layer.queries[:, -8:])
    votes = torch.zeros(2, 60, dtype=torch.double)
    for head in range(6):
        for row in range(8):
            logits = layer.keys[head // 3].double() @ layer.queries[head, row].double() * layer.scale
            logits[60 - 8 + row + 1 :] = -torch.inf
            votes[head // 3] += logits.softmax(-1)
    for head, tokens in enumerate(chosen(SnapKV(budget=20, window=8, kernel=1), layer, question(layer))[0]):
        assert tokens == {*votes[head, :52].topk(12).indices.tolist(), *range(52, 60)}


def test_neighbours_of_what_is_looked_at_stay_too() -> None:
    layer = watched(haystack(200, needle=77), direction().expand(6, 8, -1))
    for head in chosen(SnapKV(budget=40, window=8, kernel=5), layer, question(layer))[0]:
        assert {75, 76, 77, 78, 79} <= head


def test_options_that_cannot_be() -> None:
    with pytest.raises(BadOption, match="kernel=4"):
        SnapKV(kernel=4)
