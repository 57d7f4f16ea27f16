"""The oracle reads the keys with the most attention."""

from __future__ import annotations

import pytest
import torch
from haystacks import chosen, haystack, masses, put, question

from longctx.kv.oracle import Oracle


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_no_other_choice_of_so_many_keys_has_more_attention(softcap: float | None) -> None:
    layer = haystack(80, needle=33, softcap=softcap)
    asked = question(layer, rows=2)
    weights = masses(layer, asked).softmax(-1).mean(2)[0]
    for head, tokens in enumerate(chosen(Oracle(budget=12), layer, asked)[0]):
        assert tokens == set(weights[head].topk(12).indices.tolist()) and 33 in tokens


def test_what_is_left_is_known_exactly() -> None:
    layer = haystack(80)
    asked = question(layer)
    policy = Oracle(budget=12)
    index = policy.index(layer, 12)
    choice = policy.choose(index, put(layer, index, asked))
    assert choice.unread is not None and choice.slots is not None
    logits = masses(layer, asked)
    left = torch.ones_like(logits[:, :, 0], dtype=torch.bool).scatter(-1, choice.slots, False)
    expected = logits.masked_fill(~left[:, :, None], -torch.inf).logsumexp(-1)
    torch.testing.assert_close(choice.unread.log.double(), expected, rtol=1e-5, atol=1e-5)
