"""Architectures of transformers in small, with random weights: what other people's models are made of."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

# what sizes are called, in one family or another
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "n_inner", "expert_hidden_size"), 96),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("head_dim", "kv_channels", "v_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("rotary_dim", "qk_rope_head_dim", "qk_nope_head_dim", "state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts", "mamba_n_groups"), 1),
    **dict.fromkeys(("num_shared_experts", "shared_expert_num", "n_groups"), 1),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "linear_num_key_heads", "moe_k"), 2),
    **dict.fromkeys(("mamba_n_heads", "linear_num_value_heads"), 4),
    "vocab_size": tiny.VOCAB, "vocab_size_per_layer_input": tiny.VOCAB, "hidden_size_per_layer_input": 16,
    "max_position_embeddings": 1024, "n_positions": 1024, "sliding_window": 8, "num_kv_shared_layers": 2,
    "q_lora_rank": 24, "kv_lora_rank": 16, "mamba_d_head": 32, "lru_width": 64, "conv_dim": 64, "block_dim": 64,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False,  # or they repeat a word
}  # fmt: skip
_LATENT: dict[str, Any] = {"num_key_value_heads": 4, "head_dim": ...}  # left to the configuration
_MIXED = ["mamba", "attention"] * 2
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("AXK1", "AXK2", "DeepseekV3", "DeepseekV32", "GlmMoeDsa", "Youtu"), _LATENT),
    **dict.fromkeys(("Bert", "Electra", "MegatronBert", "Roberta", "XLMRoberta"), {"is_decoder": True}),
    **dict.fromkeys(("Gemma4Text", "Gemma4UnifiedText"), {"num_kv_shared_layers": 0}),
    "Bamba": {"attn_layer_indices": [1, 3]},
    "FalconH1": {"mamba_d_ssm": 64, "mamba_d_head": 16},
    "GPTNeo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "GraniteMoeHybrid": {"layer_types": _MIXED},
    "Jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "Lfm2Moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "Reformer": {"is_decoder": True, "axial_pos_shape": [32, 32], "axial_pos_embds_dim": [32, 32]},
    "Mamba2": {"head_dim": 32, "expand": 2},
}
CONFIGS = {kind.__name__.removesuffix("Config"): kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING}


def small(name: str) -> PreTrainedModel:
    """The architecture ``name`` with four layers and random weights; the same every time."""
    kind = CONFIGS[name]
    known = kind().to_dict()
    given = {size: value for size, value in _SIZES.items() if size in known}
    if known.get("sliding_window") is None:
        given.pop("sliding_window", None)
    given |= _OWN.get(name, {})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**{size: v for size, v in given.items() if v is not ...})).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.15, generator=generator)
    return model
