"""LM-Infinite: the first tokens and the last, constant memory, and a ceiling of distance."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
from haystacks import chosen, haystack, put, question

import longctx.kv
from longctx.errors import BadOption
from longctx.kv.lm_infinite import LmInfinite

pytestmark = pytest.mark.usefixtures("one_thread")
POLICY = LmInfinite(budget=40, sinks=4, window=16)


@pytest.mark.parametrize("at", [2, 100, 190])
def test_a_needle_in_the_middle_is_lost(at: int) -> None:
    layer = haystack(200, needle=at)
    for tokens in chosen(POLICY, layer, question(layer))[0]:
        assert tokens == {*range(4), *range(164, 200)}
        assert (at in tokens) == (at != 100)


def test_memory_is_the_same_however_long_the_text_is() -> None:
    model = tiny.model("llama")
    ids = torch.randint(4, 470, (400,), generator=torch.Generator().manual_seed(0))
    sizes = {longctx.kv.compress(model, ids[:count], POLICY).nbytes for count in (60, 200, 400)}
    assert len(sizes) == 1


def test_no_key_seems_further_away_than_the_ceiling() -> None:
    layer = haystack(200)
    policy = dataclasses.replace(POLICY, ceiling=50)
    index = policy.index(layer, 40)
    choice = policy.choose(index, put(layer, index, question(layer, rows=3)))
    assert choice.places is not None
    assert (choice.places[0, 0, :4] == 202 - 50).all()
    assert choice.places[0, 0, 4:].tolist() == list(range(164, 200))


def test_without_sinks_the_ceiling_holds_too() -> None:
    layer = haystack(200)
    policy = dataclasses.replace(POLICY, sinks=0, ceiling=30)
    index = policy.index(layer, 40)
    places = policy.choose(index, put(layer, index, question(layer, rows=3))).places
    assert places is not None
    assert places[0, 0].tolist() == [172] * 12 + list(range(172, 200))


def test_new_tokens_see_the_first_and_the_last_tokens_of_the_context() -> None:
    """With one layer, the same as a stock pass whose mask hides the others."""
    model = tiny.model("llama", num_hidden_layers=1)
    ids = torch.randint(4, 470, (1, 30), generator=torch.Generator().manual_seed(0))
    context = longctx.kv.compress(model, ids[:, :24], "lm_infinite:budget=10,sinks=3,ceiling=1000,window=4")
    seen = torch.ones(30, 30, dtype=torch.bool).tril()
    seen[24:, 3:17] = False
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    with torch.inference_mode():
        expected = model(ids, attention_mask=mask).logits[:, 24:]
        with context.attached(model) as cache:
            found = model(ids[:, 24:], past_key_values=cache).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_options_that_cannot_be() -> None:
    with pytest.raises(BadOption, match="ceiling=0"):
        LmInfinite(ceiling=0)
