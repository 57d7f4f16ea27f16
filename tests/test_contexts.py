"""Compressed contexts inside model.generate, against the stock model."""

from __future__ import annotations

import pytest
import tiny
import torch

import longctx.kv

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.randint(4, 470, (1, 90), generator=torch.Generator().manual_seed(0))
CONTEXT = 70


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_full_is_stock_attention(family: str) -> None:
    model = tiny.model(family)
    expected = model.generate(IDS, do_sample=False, max_new_tokens=20, min_new_tokens=20)
    with torch.inference_mode():
        logits = model(IDS).logits[:, CONTEXT:]
    context = longctx.kv.compress(model, IDS[:, :CONTEXT], policy="full", piece_tokens=32)
    with context.attached(model) as cache:
        with torch.inference_mode():
            seen = model(IDS[:, CONTEXT:], past_key_values=cache).logits
        torch.testing.assert_close(seen, logits, rtol=1e-5, atol=1e-5 * float(logits.abs().max()))
        cache.rewind()
        said = model.generate(IDS, past_key_values=cache, do_sample=False, max_new_tokens=20, min_new_tokens=20)
    assert torch.equal(said, expected)


@pytest.mark.parametrize("options", ["mass=1.0", "mode=paper", "levels=2"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt_neox"])
def test_squeezed_answers_and_stays_within_its_budget(family: str, options: str) -> None:
    model = tiny.model(family)
    context = longctx.kv.compress(
        model, IDS[:, :CONTEXT], f"squeezed:budget=40,sinks=2,recent=8,clusters=0.2,{options}"
    )
    with context.attached(model, audit_every=1) as cache:
        model.generate(IDS, past_key_values=cache, do_sample=False, max_new_tokens=20, min_new_tokens=20)
        report = cache.report()
    print(report)
    assert report.read_keys <= 40 or "paper" in options
