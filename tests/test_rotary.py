"""Keys moved to other positions are the keys that the model itself computes there."""

from __future__ import annotations

from collections.abc import Callable

import architectures
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, CohereConfig, DynamicCache

import longctx.kv
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


def check(model: object, layers: Callable[[int], bool] | None = None) -> None:
    """``layers`` says which keys are the same wherever they stand; None: no layer's are."""
    turned = turns(model, kinds(model))  # type: ignore[arg-type]
    near, far = keys(model, 3), keys(model, 1203)
    for number, (turn, one, other) in enumerate(zip(turned, near, far, strict=True)):
        by = torch.full(one.shape[:-1], 1200)
        # positions only shift, so that deeper layers see the same too
        torch.testing.assert_close(turn(one, by), other, rtol=1e-3, atol=2e-3)
        torch.testing.assert_close(turn(other, -by), one, rtol=1e-3, atol=2e-3)
        moved = float((one - other).abs().max())
        assert moved < 0.01 if layers is not None and layers(number) else moved > 0.1, number


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


@pytest.mark.parametrize(
    ("name", "still"),
    [(name, lambda layer: layer == 3) for name in ("SmolLM3", "Cohere2", "Exaone4")],
)
def test_layers_that_rotate_nothing_are_left_as_they_are(name: str, still: Callable[[int], bool]) -> None:
    """Their keys used to be turned as those of the first layer are, and said something else without a word."""
    check(architectures.small(name), still)


def test_where_chunks_stand_says_nothing_to_layers_without_positions() -> None:
    model = architectures.small("Cohere2")  # the one layer that sees everything has no positions
    ids = torch.randint(4, 470, (1, 150), generator=torch.Generator().manual_seed(5))
    said = []
    for move in ("true", "false"):
        context = longctx.kv.compress(model, ids[:, :130], f"longheads:budget=60,window=10,move={move}")
        with torch.inference_mode(), context.attached(model) as cache:
            said.append(model(ids[:, 130:], past_key_values=cache).logits)
    torch.testing.assert_close(said[0], said[1], rtol=1e-5, atol=1e-5)


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
