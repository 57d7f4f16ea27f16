"""Keys moved to other positions are the keys that the model itself computes there."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, CohereConfig, DynamicCache

from longctx.backend.compressing import kinds
from longctx.backend.rotary import turns
from longctx.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.randint(4, 470, (1, 6), generator=torch.Generator().manual_seed(0))


def keys(model: object, start: int) -> list[torch.Tensor]:
    cache = DynamicCache()
    with torch.inference_mode():
        model(IDS, position_ids=torch.arange(start, start + 6)[None], past_key_values=cache)  # type: ignore[operator]
    return [layer.keys[0] for layer in cache.layers]


def check(model: object) -> None:
    turned = turns(model, kinds(model))  # type: ignore[arg-type]
    near, far = keys(model, 3), keys(model, 1203)
    for turn, one, other in zip(turned, near, far, strict=True):
        by = torch.full(one.shape[:-1], 1200)
        # positions only shift, so that deeper layers see the same too
        torch.testing.assert_close(turn(one, by), other, rtol=1e-3, atol=2e-3)
        torch.testing.assert_close(turn(other, -by), one, rtol=1e-3, atol=2e-3)
        assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_turned_keys_are_the_models_own(family: str) -> None:
    check(tiny.model(family))


def test_pairs_that_stand_beside_each_other_are_turned_too() -> None:
    """Cohere interleaves what others split in halves."""
    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=480, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=1, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, 0.0, 0.2)
    check(model)


def test_frequencies_that_change_with_the_length_are_refused() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    model = tiny.model("llama", rope_parameters=rope)
    with pytest.raises(ModelError, match="how long the text is"):
        turns(model, kinds(model))


def test_positions_that_are_no_rotation_are_refused() -> None:
    from transformers import GPT2Config

    config = GPT2Config(vocab_size=480, n_embd=64, n_layer=2, n_head=4)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with pytest.raises(ModelError, match="does not rotate"):
        turns(model, kinds(model))
