"""Reads a llama model out of a GGUF file: its configuration, its tensors in bfloat16 and its tokenizer.

Owns the names and layouts of GGUF. Knows no folder, no cache and no Hugging Face model class; it needs the package
``gguf`` and nothing else that is optional.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from longctx.errors import ModelError

_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3


class LlamaFile:
    """An open GGUF file of the llama architecture."""

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)
        architecture = self._field("general.architecture")
        if architecture != "llama":
            raise ModelError(f"{path.name} holds a {architecture!r} model; only 'llama' can be read from GGUF.")

    @property
    def tensor_count(self) -> int:
        return len(self._reader.tensors)

    def config(self) -> dict[str, Any]:
        """What Hugging Face's ``config.json`` says of this model."""
        heads = self._field("llama.attention.head_count")
        hidden = self._field("llama.embedding_length")
        theta = _short(self._field("llama.rope.freq_base"))
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "vocab_size": self._field("llama.vocab_size"),
            "hidden_size": hidden,
            "intermediate_size": self._field("llama.feed_forward_length"),
            "num_hidden_layers": self._field("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._field("llama.attention.head_count_kv"),
            "head_dim": hidden // heads,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "max_position_embeddings": self._field("llama.context_length"),
            "rms_norm_eps": _short(self._field("llama.attention.layer_norm_rms_epsilon")),
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in self._reader.tensors),
            **self.token_ids(),
        }

    def token_ids(self) -> dict[str, int]:
        """The ids of the tokens with a role, under the names Hugging Face gives them."""
        roles = {"bos": "bos", "eos": "eos", "pad": "padding"}
        return {f"{role}_token_id": self._field(f"tokenizer.ggml.{name}_token_id") for role, name in roles.items()}

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor under its Hugging Face name, dequantised in float32 and rounded once to bfloat16."""
        heads = {
            "attn_q": self._field("llama.attention.head_count"),
            "attn_k": self._field("llama.attention.head_count_kv"),
        }
        for tensor in self._reader.tensors:
            values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
            name, part = _hugging_face_name(tensor.name)
            if part in heads:
                values = _unpermuted(values, heads[part])
            yield name, torch.from_numpy(np.require(values, requirements=["C", "W"])).to(torch.bfloat16)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer: byte-level BPE in which every digit is its own token."""
        kind = (self._field("tokenizer.ggml.model"), self._field("tokenizer.ggml.pre"))
        if kind != ("gpt2", "smollm"):
            raise ModelError(f"the file's tokenizer is {kind}; only byte-level BPE of the kind 'smollm' can be read.")
        tokens = self._field("tokenizer.ggml.tokens")
        merges = [tuple(pair.split(" ", 1)) for pair in self._field("tokenizer.ggml.merges")]
        made = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=merges))
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        made.decoder = decoders.ByteLevel()
        control = zip(tokens, self._field("tokenizer.ggml.token_type"), strict=True)
        made.add_special_tokens([AddedToken(text, special=True) for text, kind in control if kind == _CONTROL_TOKEN])
        return made

    def tokenizer_config(self) -> dict[str, Any]:
        """What Hugging Face's ``tokenizer_config.json`` says; the chat template stands in its own file."""
        tokens = self._field("tokenizer.ggml.tokens")
        roles = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{f"{role}_token": tokens[self._field(f"tokenizer.ggml.{name}_token_id")] for role, name in roles.items()},
        }

    def chat_template(self) -> str:
        return str(self._field("tokenizer.chat_template"))

    def _field(self, name: str) -> Any:
        field = self._reader.get_field(name)
        if field is None:
            raise ModelError(f"the GGUF file lacks the field {name!r}.")
        return field.contents()


def _hugging_face_name(name: str) -> tuple[str, str]:
    """(the Hugging Face name, the part of the layer it is) of a GGUF tensor."""
    if name in _OUTER:
        return _OUTER[name], ""
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if match is None or match[2] not in _INNER:
        raise ModelError(f"the GGUF file holds a tensor {name!r} that no llama model has.")
    return f"model.layers.{match[1]}.{_INNER[match[2]]}.weight", match[2]


def _unpermuted(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of a query or key projection in Hugging Face's order: GGUF interleaves the two halves of each head."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _short(value: float) -> float:
    """The shortest decimal that is the same float32: GGUF stores float32, and 1e-05 reads better than its expansion."""
    return float(str(np.float32(value)))
