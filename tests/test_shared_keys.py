"""Generators that draft from keys and values which layers share: they are those of the committed text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generators import PROMPT, STEADILY, TOKENIZER, Knowing, Seldom, plain
from transformers import AutoModelForCausalLM, DynamicCache, Gemma4AssistantConfig, Gemma4TextConfig, GenerationConfig
from transformers.generation.candidate_generator import SinglePositionMultiTokenCandidateGenerator
from transformers.models.gemma4.modeling_gemma4 import Gemma4CausalLMOutputWithPast
from transformers.models.gemma4_assistant.modeling_gemma4_assistant import Gemma4AssistantForCausalLM

import longctx
from longctx.backend.states import SHARED, STATES, Watch, shown
from longctx.backend.target import RowTarget, StockTarget
from longctx.drafts import Seen

pytestmark = pytest.mark.usefixtures("one_thread")


def gemma4(sharing: int, **own: Any) -> Any:
    """Three layers of a window for one of the whole text, the last ``sharing`` of which read what earlier ones keep."""
    torch.manual_seed(0)
    sizes = {"num_kv_shared_layers": sharing, "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 2}
    return AutoModelForCausalLM.from_config(Gemma4TextConfig(**_GEMMA4 | sizes | own)).float().eval()


_GEMMA4: dict[str, Any] = {
    "vocab_size": 480, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32, "max_position_embeddings": 512,
    "sliding_window": 8, "vocab_size_per_layer_input": 480, "hidden_size_per_layer_input": 8, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip


def assistant_of(model: Any) -> Any:
    """A random one of two layers, large enough that what it says follows from the keys it is shown."""
    text = Gemma4TextConfig(**_GEMMA4 | {
        "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "hidden_size": 32,
    })  # fmt: skip
    config = Gemma4AssistantConfig(text_config=text, backbone_hidden_size=64)
    with pytest.MonkeyPatch.context() as patch:
        # transformers 5.23 cannot make one: it looks for layers before the first that shares, and there are none
        patch.setattr(Gemma4TextConfig, "kv_sharing_modes", ["reuse", "reuse"])
        assistant = Gemma4AssistantForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in assistant.parameters():
            if weight.ndim > 1:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    assistant.generation_config.num_assistant_tokens = 3
    return assistant


def sharing_drafter(assistant: Any, model: Any) -> Any:
    return SinglePositionMultiTokenCandidateGenerator(
        assistant, model.get_input_embeddings(), GenerationConfig(max_length=500)
    )


@pytest.mark.parametrize("kind", [RowTarget, StockTarget])
@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("sharing", [2, 4])
def test_keys_and_values_that_layers_share_are_those_of_one_plain_pass(kind: type, states: bool, sharing: int) -> None:
    """Of more tokens than a window holds, with rows that were wrong, in a tree where there are trees."""
    model = gemma4(sharing)
    target = RowTarget(model, 96) if kind is RowTarget else StockTarget(model, "chain")
    take = target.watch({STATES: -1, SHARED: True} if states else {SHARED: True})
    text: list[int] = []
    pieces: list[Seen | None] = []
    for first in range(0, 40, 4):
        ids = list(range(10 + first, 14 + first))
        if kind is RowTarget:  # two wrong rows before the second and after the third
            target.score([ids[0], 400, *ids[1:], 401], [-1, 0, 0, 2, 3, 3], 6)
            target.commit([0, 2, 3])
        else:
            target.score([*ids, 400], range(-1, 4), 5)
            target.commit([0, 1, 2])
        text += ids[:3]
        if first % 8:
            pieces.append(take())
    with torch.inference_mode():
        whole = model(torch.tensor([text]), output_hidden_states=True, return_shared_kv_states=True, use_cache=False)
    assert len(pieces) == 5 and whole.shared_kv_states.keys() == {"sliding_attention", "full_attention"}
    for layer, (keys, values) in whole.shared_kv_states.items():
        own = [[piece.shared[layer][at] for piece in pieces if piece is not None] for at in range(2)]
        torch.testing.assert_close(torch.cat(own[0], 2), keys, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(torch.cat(own[1], 2), values, rtol=1e-3, atol=1e-4)
    if states:
        own_states = torch.cat([piece.states[-1] for piece in pieces if piece is not None], 1)
        torch.testing.assert_close(own_states, whole.hidden_states[-1], rtol=1e-3, atol=1e-4)
    else:
        assert not any(piece.states for piece in pieces if piece is not None)


def test_of_a_pass_over_rows_of_several_requests_each_sees_its_own() -> None:
    """Of keys and values some tokens before the rows come along."""
    states, keys = torch.randn(1, 8, 6), torch.randn(1, 2, 11, 4)
    out = Gemma4CausalLMOutputWithPast(hidden_states=(states,), shared_kv_states={"full_attention": (keys, -keys)})
    watch = Watch({STATES: True, SHARED: True})
    shown([watch], out, 8, first=3, count=2)
    watch.keep([1])
    seen = watch.take()
    assert seen is not None and torch.equal(seen.states[0], states[:, 4:5])
    own = seen.shared["full_attention"]
    assert torch.equal(own[0], keys[:, :, 7:8]) and torch.equal(own[1], -keys[:, :, 7:8])


@pytest.mark.parametrize("beside", ["nobody", "right", "seldom", "three prompts"])
def test_an_assistant_that_reads_the_models_keys_says_what_a_fresh_one_does(
    beside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is shown the keys of the committed text by one plain pass."""
    model = gemma4(4)
    assistant = assistant_of(model)
    say, said = SinglePositionMultiTokenCandidateGenerator.get_candidates, list[tuple[Any, list[int]]]()

    def listened(self: Any, ids: Any, **given: Any) -> Any:
        out = say(self, ids, **given)
        if not given["is_first_iteration"]:
            said.append((ids, out[0][0, ids.shape[1] :].tolist()))
        return out

    prompts = torch.cat((PROMPT, PROMPT.flip(1), PROMPT.roll(4))) if beside == "three prompts" else PROMPT
    expected = plain(model, prompts)
    with monkeypatch.context() as patch:
        patch.setattr(SinglePositionMultiTokenCandidateGenerator, "get_candidates", listened)
        own = sharing_drafter(assistant, model)
        drafters = [own, Knowing(expected, -1, [])] if beside == "right" else [own]
        given = STEADILY | ({"controller": Seldom()} if beside == "seldom" else {})
        out = longctx.generate(model, TOKENIZER, prompts, drafters=drafters, **given)
    assert torch.equal(out.sequences, expected) and len(said) >= 8
    assert out.stats.drafted_by_source[type(own).__name__.lower()] >= 8
    differ = 0
    for ids, candidates in said:
        fresh = sharing_drafter(assistant, model)
        with torch.inference_mode():
            outputs = model(ids[:, :-1], output_hidden_states=True, return_shared_kv_states=True, use_cache=False)
            whole, _ = fresh.get_candidates(ids, {"attention_mask": torch.ones_like(ids)}, outputs, False, 0)
        assert candidates == whole[0, ids.shape[1] :].tolist()
        kinds = {kind: (0 * keys, values) for kind, (keys, values) in outputs.shared_kv_states.items()}
        outputs.shared_kv_states, fresh = kinds, sharing_drafter(assistant, model)
        with torch.inference_mode():
            other, _ = fresh.get_candidates(ids, {"attention_mask": torch.ones_like(ids)}, outputs, False, 0)
        differ += candidates != other[0, ids.shape[1] :].tolist()
    assert 2 * differ > len(said), "what it says follows from the keys"


def test_rows_are_taken_back_where_some_layers_keep_nothing() -> None:
    model = gemma4(2)
    target = StockTarget(model, "chain", DynamicCache(config=model.config))
    target.score([5, 6, 7, 8], range(-1, 3), 1)
    target.commit(range(4))
    expected = target.score([9, 10], [-1, 0], 2)
    target.rollback()
    torch.testing.assert_close(target.score([9, 10], [-1, 0], 2), expected)
