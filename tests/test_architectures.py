"""Other people's models: every architecture that can be made small says what it says by itself, or is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import architectures
import numpy as np
import pytest
import tiny
import torch
from scripted import Telling
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    LlavaConfig,
    Mistral3Config,
    PixtralVisionConfig,
    SiglipVisionConfig,
)

import longctx
from longctx import generation
from longctx.drafts import Budget, Draft, DraftSource
from longctx.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.tensor([[9, 12, 401, 33, 8, 64, 2] * 4 + [9, 12, 401]])
GREEDY: dict[str, Any] = {"max_new_tokens": 10, "eos_token_id": None, "pad_token_id": 1}

TREES = """
    Afmoe Apertus Arcee AriaText AXK1 Beam Bert BioGpt BitNet Cohere Cohere2 Cohere2Moe CTRL Cwm DeepseekV2 DeepseekV3
    DiffLlama Doge Dots1 Electra Ernie4_5 Ernie4_5_Moe Exaone4 ExaoneMoe FlexOlmo Flint Gemma Gemma2 Gemma3nText
    Gemma3Text Gemma4Text Gemma4UnifiedText Glm Glm4 Glm4Moe Glm4MoeLite GPT2 GPTBigCode GPTNeoX GptOss Granite
    GraniteMoe GraniteMoeShared GraniteMoeSWA GraniteSWA Helium HrmText HunYuanDenseV1 HunYuanMoEV1 HyperCLOVAX HYV3
    InternLM3 IQuestCoder Jais2 JetMoe Kolibri1 Laguna Lfm2 Llama Mellum MiMoV2Flash MiniCPM3 MiniMaxM2 MiniMaxM3VLText
    Ministral Ministral3 Mistral Mixtral ModernBertDecoder NanoChat Olmo Olmo2 Olmo3 Olmoe OPT Persimmon Phi Phi3 Phimoe
    Qwen2 Qwen2Moe Qwen3 Qwen3Moe SeedOss SmolLM3 SolarOpen Starcoder2 VaultGemma Youtu
""".split()
CHAINS = """
    AXK2 Bart BigBirdPegasus BlenderbotSmall Bloom CodeGen DeepseekV32 Falcon GlmMoeDsa GPTJ GPTNeo GPTNeoXJapanese HYV4
    Inkling2Text InklingText Lfm2Moe Lfm3 Llama4Text Marian MBart MegatronBert Mpt Mvp Nemotron Pegasus PLBart StableLm
    TrOCR Whisper XGLM
""".split()
SINGLE = """
    Bamba BertGeneration BigBird Camembert Data2VecText DeepseekV4 Ernie FalconH1 FalconMamba GraniteMoeHybrid Jamba
    Mamba Mamba2 MiniMax NemotronH OlmoHybrid Qwen3_5MoeText Qwen3_5Text Qwen3Next RecurrentGemma RemBert Roberta
    RobertaPreLayerNorm RoCBert RoFormer XLMRoberta XLMRobertaXL
""".split()
ROWS = {name: rows for rows, names in (("tree", TREES), ("chain", CHAINS), ("off", SINGLE)) for name in names}
# trees whose layers a bounded cache does not suit: latents, keys of other layers, attention of another form
UNSUITED = set(
    "AXK1 DeepseekV2 DeepseekV3 DiffLlama Doge Gemma3nText Glm4MoeLite HrmText JetMoe MiniCPM3 Youtu".split()
)


@dataclass(frozen=True)
class Half:
    """Two tokens that are right and one that is not, each beside others that are not: rows are kept and taken back."""

    text: tuple[int, ...]
    needs: int = 0

    def begin(self, source: DraftSource) -> Telling:
        return Telling(source.prompt.tolist(), self._tell)

    def _tell(self, text: list[int], budget: Budget) -> Draft:
        right = self.text[len(text) : len(text) + 2]
        if len(right) < 2 or budget.depth < 3:
            return Draft.empty()
        off = [(token + 5) % tiny.VOCAB for token in (*right, 11)]
        tokens = np.asarray([right[0], off[0], right[1], off[1], off[2]])
        return Draft(tokens, np.asarray([-1, -1, 0, 0, 2]), np.asarray([0.9, 0.2, 0.8, 0.2, 0.7]))


@pytest.mark.parametrize("name", ROWS)
def test_drafts_change_no_token_and_a_bounded_cache_is_the_models_own_or_refused(name: str) -> None:
    model = architectures.small(name)
    expected = model.generate(IDS, do_sample=False, **GREEDY)
    half = Half(tuple(expected[0].tolist()))
    out = longctx.generate(model, tiny.tokenizer(), IDS, drafters=[half], controller="fixed:nodes=5", **GREEDY)
    assert torch.equal(out.sequences, expected) and out.stats.rows == ROWS[name]
    assert out.stats.drafted > out.stats.accepted > 3 or ROWS[name] == "off"
    try:
        context = longctx.kv.compress(model, IDS[:, :24], policy="full")
    except ModelError as error:
        assert name in UNSUITED or ROWS[name] != "tree", error
        return
    assert name not in UNSUITED
    with context.attached(model) as cache:
        assert torch.equal(model.generate(IDS, past_key_values=cache, do_sample=False, **GREEDY), expected)


@pytest.mark.parametrize("name", SINGLE)
def test_where_no_row_is_taken_back_a_prompt_is_read_at_once_and_a_batch_one_after_another(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second pass of several tokens begins anew in some of them, and some keep their state on their modules."""
    monkeypatch.setattr(generation, "PIECE", 8)
    model, both = architectures.small(name), torch.cat((IDS, IDS.flip(1)))
    out = longctx.generate(model, tiny.tokenizer(), both, drafters=[], **GREEDY)
    assert torch.equal(out.sequences, model.generate(both, do_sample=False, **GREEDY))


VISION: dict[str, Any] = {
    "image_size": 28, "patch_size": 14, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32,
    "intermediate_size": 32,
}  # fmt: skip
SEEING: dict[str, Any] = {
    "Gemma3": lambda: Gemma3Config(
        text_config=tiny.config("gemma3").to_dict(), vision_config=SiglipVisionConfig(**VISION), mm_tokens_per_image=4
    ),
    "Mistral3": lambda: Mistral3Config(
        text_config=tiny.config("mistral").to_dict(),
        vision_config=PixtralVisionConfig(**VISION),
        image_token_index=470,
    ),
    "Llava": lambda: LlavaConfig(
        text_config=tiny.config("llama").to_dict(), vision_config=CLIPVisionConfig(**VISION), image_token_index=470
    ),
}


@pytest.mark.parametrize("name", SEEING)
def test_models_that_could_see_answer_texts(name: str) -> None:
    """For these generate hands on that there is nothing to be seen."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(SEEING[name]()).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.15)
    expected = model.generate(IDS, do_sample=False, **GREEDY)
    half = Half(tuple(expected[0].tolist()))
    out = longctx.generate(model, tiny.tokenizer(), IDS, drafters=[half], controller="fixed:nodes=5", **GREEDY)
    assert torch.equal(out.sequences, expected) and out.stats.rows == "tree" and out.stats.accepted > 3
    with longctx.kv.compress(model, IDS[:, :24], policy="full").attached(model) as cache:
        assert torch.equal(model.generate(IDS, past_key_values=cache, do_sample=False, **GREEDY), expected)


@pytest.mark.parametrize("name", ["CpmAnt", "OpenAIGPT", "Reformer", "Rwkv", "XLNet"])
def test_what_cannot_decode_token_by_token_is_refused_by_name(name: str) -> None:
    model = architectures.small(name)
    with pytest.raises(ModelError, match=f"{type(model).__name__} .*cannot decode token by token"):
        longctx.generate(model, tiny.tokenizer(), IDS, **GREEDY)


def test_every_architecture_that_is_named_is_one_of_transformers() -> None:
    assert set(ROWS) <= set(architectures.CONFIGS) and len(ROWS) == len(TREES) + len(CHAINS) + len(SINGLE)
