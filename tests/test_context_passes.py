"""What a pass over a bounded cache may bring along: rows, positions, masks and modes that do not go on from it."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from contexts import CONTEXT, GREEDY, IDS, SQUEEZED, compressed

import longctx
import longctx.kv
from longctx.errors import CacheError, ModelError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:decoded one token at a time"),
]
MORE = IDS[:, 5:9]
OTHER = torch.cat((IDS[:, :CONTEXT], IDS[:, 3:15]), 1)  # another question, shorter than the one in IDS


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
@pytest.mark.parametrize("policy", ["full", SQUEEZED])
def test_plain_generate_goes_on_behind_speculative_and_behind_inference_mode(family: str, policy: str) -> None:
    model = tiny.model(family)
    with compressed(model, policy).attached(model) as cache:
        said = model.generate(IDS, past_key_values=cache, **GREEDY)
        further = torch.cat((said, MORE), 1)
        expected = model.generate(further, past_key_values=cache, **GREEDY)
        cache.rewind()
        decode: Any = longctx.speculative(drafters=["ngram"])
        assert torch.equal(model.generate(IDS, past_key_values=cache, custom_generate=decode, **GREEDY), said)
        assert torch.equal(model.generate(further, past_key_values=cache, **GREEDY), expected)
        answers = []
        for mode in (torch.no_grad, torch.inference_mode):
            cache.rewind()
            with mode():
                model(IDS[:, CONTEXT:80], past_key_values=cache)
                model(IDS[:, 80:85], past_key_values=cache)
            answers.append(model.generate(IDS, past_key_values=cache, **GREEDY))
        assert torch.equal(answers[0], answers[1])


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
def test_another_number_of_rows_than_the_cache_holds_is_refused(family: str) -> None:
    model = tiny.model(family)
    with compressed(model).attached(model) as cache:
        out = model.generate(IDS, past_key_values=cache, **GREEDY | {"num_beams": 3})
        further = torch.cat((out, MORE), 1)
        with pytest.raises(CacheError, match=r"holds 3 rows .* and 1 are asked"):
            model.generate(further, past_key_values=cache, **GREEDY)
        cache.rewind()
        alone = model.generate(IDS, past_key_values=cache, **GREEDY)
        with pytest.raises(CacheError, match=r"holds 1 rows .* and 3 are asked"):
            model.generate(torch.cat((alone, MORE), 1).repeat(3, 1), past_key_values=cache, **GREEDY)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_shorter_question_behind_another_one_is_refused(family: str) -> None:
    """generate drops as many ids as the cache holds, and would feed the end of the context again."""
    model = tiny.model(family)
    with compressed(model).attached(model) as cache:
        expected = model.generate(OTHER, past_key_values=cache, **GREEDY)
        cache.rewind()
        model.generate(IDS, past_key_values=cache, **GREEDY)
        with pytest.raises(CacheError, match=r"begin at position \d+, and the cache holds"):
            model.generate(OTHER, past_key_values=cache, **GREEDY)
        cache.rewind()
        assert torch.equal(model.generate(OTHER, past_key_values=cache, **GREEDY), expected)


def test_a_pass_with_gradients_is_refused_and_one_without_them_is_not() -> None:
    model = tiny.model("llama")
    with compressed(model).attached(model) as cache:
        with pytest.raises(CacheError, match=r"no gradients. .*torch\.no_grad"):
            model(IDS[:, CONTEXT:], past_key_values=cache)
        with torch.no_grad():
            assert model(IDS[:, CONTEXT:], past_key_values=cache).logits.shape[1] == IDS.shape[1] - CONTEXT


def test_masks_of_another_shape_are_refused() -> None:
    model = tiny.model("llama")
    new = IDS[:, CONTEXT:]
    with torch.inference_mode(), compressed(model).attached(model) as cache:
        for wide in (IDS.shape[1], new.shape[1]):
            mask = torch.zeros(1, 1, new.shape[1], wide)
            with pytest.raises(CacheError, match=r"shape \[batch, tokens\]"):
                model(new, attention_mask=mask, past_key_values=cache)


def test_a_model_on_several_devices_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama", tie_word_embeddings=False)
    context = compressed(model)
    model.lm_head.to("meta")
    with pytest.raises(ModelError, match="spread over cpu, meta.*without device_map="):
        longctx.kv.compress(model, IDS[:, :CONTEXT])
    with pytest.raises(ModelError, match="spread over"):
        longctx.kv.read(model, IDS[:, :CONTEXT])
    assert context.tokens == CONTEXT
