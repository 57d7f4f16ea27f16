"""One reading for several policies: each context is the one that ``compress`` makes, and stock attention goes on."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

import longctx.kv
from longctx.errors import BadOption

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.randint(4, 470, (1, 90), generator=torch.Generator().manual_seed(0))
CONTEXT = 70
POLICIES = (
    "full",
    "squeezed:budget=40,sinks=2,recent=8,clusters=0.2",
    "squeezed:budget=40,sinks=2,recent=8,clusters=0.2,mode=paper",
    "quest:budget=40,page=4,recent=4",
    "snapkv:budget=40,window=16",
)


def seen(model: Any, context: longctx.kv.CompressedContext) -> torch.Tensor:
    with context.attached(model) as cache, torch.inference_mode():
        logits: torch.Tensor = model(IDS[:, CONTEXT:], past_key_values=cache).logits
    return logits


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_every_policy_gets_of_one_reading_what_it_would_get_of_its_own(family: str) -> None:
    model = tiny.model(family)
    reading = longctx.kv.read(model, IDS[:, :CONTEXT], piece_tokens=32)
    for policy in POLICIES:
        own = longctx.kv.compress(model, IDS[:, :CONTEXT], policy, piece_tokens=32)
        shared = reading.compress(policy)
        assert torch.equal(seen(model, shared), seen(model, own))
        assert (shared.tokens, shared.nbytes, shared.lookup_bytes) == (CONTEXT, own.nbytes, own.lookup_bytes)
        for one, other in zip(shared._context.layers, own._context.layers, strict=True):  # the bounds they state
            assert (one.slack is None) == (other.slack is None)
            assert one.slack is None or other.slack is None or torch.equal(one.slack, other.slack)
        assert (own.lookup_bytes > 0) == policy.startswith(("squeezed", "quest"))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_the_stock_model_goes_on_from_it(family: str) -> None:
    model = tiny.model(family)
    with torch.inference_mode():
        expected = model(IDS).logits[:, CONTEXT:]
        cache = longctx.kv.read(model, IDS[:, :CONTEXT]).stock()
        first = model(IDS[:, CONTEXT:80], past_key_values=cache).logits
        then = model(IDS[:, 80:], past_key_values=cache).logits
    found = torch.cat((first, then), 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_repeated_reading_has_every_key_as_often() -> None:
    model = tiny.model("llama")
    reading = longctx.kv.read(model, IDS[:, :CONTEXT])
    twice = reading.repeated(2)
    assert twice.tokens == 2 * CONTEXT and twice.token_ids == reading.token_ids * 2
    once, other = reading.stock(), twice.stock()
    for number in range(4):
        keys = once.layers[number].keys
        assert torch.equal(other.layers[number].keys, torch.cat((keys, keys), 2))
    assert twice.compress("full").nbytes == 2 * reading.compress("full").nbytes


def test_what_a_reading_cannot_serve_is_refused() -> None:
    reading = longctx.kv.read(tiny.model("llama"), IDS[:, :CONTEXT])
    with pytest.raises(BadOption, match="reads the context through itself"):
        reading.compress("lm_infinite:budget=24,sinks=4,window=16")
    with pytest.raises(BadOption, match="wants the last 200 queries; 128 were kept"):
        reading.repeated(5).compress("snapkv:budget=250,window=200")
    with pytest.raises(BadOption, match="times=0"):
        reading.repeated(0)
