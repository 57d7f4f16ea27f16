"""Tiny random models of eight families and a tiny tokenizer, made in the test: nothing is downloaded.

Weights are large enough that attention is far from uniform, so that a wrong mask, scale, position or head shows.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
)

VOCAB = 480
SLIDING = 8  # tokens a sliding layer sees: far fewer than any test sentence has
_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_SLIDES = {"head_dim": 16, "sliding_window": SLIDING, "tie_word_embeddings": False}  # tied, they repeat themselves
_NO_GROUPS = {key: value for key, value in _BASE.items() if key != "num_key_value_heads"}
_CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_BASE),
    "qwen2": lambda: Qwen2Config(**_BASE),
    "qwen3": lambda: Qwen3Config(**_BASE, head_dim=16),
    "mistral": lambda: MistralConfig(**_BASE, sliding_window=SLIDING),
    "phi3": lambda: Phi3Config(**_BASE),
    "gemma2": lambda: Gemma2Config(**_BASE, **_SLIDES, attn_logit_softcapping=5.0),
    "gemma3": lambda: Gemma3TextConfig(**_BASE, **_SLIDES, sliding_window_pattern=2),
    "gpt_neox": lambda: GPTNeoXConfig(**_NO_GROUPS),
}
FAMILIES = tuple(_CONFIGS)

BOS, EOS, START, END = "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"
TEMPLATES: dict[str, str | None] = {
    "base": None,
    # a system turn of its own is put in front, as Qwen does
    "system": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # refuses the system role, writes BOS itself and trims the user's turn, as Gemma does
    "no_system": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') "
    "}}{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}",
}
_WORDS = (
    "the of and to in a is was that for on with as by at from it his an were are which this be has had not or "
    "one their answer question text below keeps room code river report street winter letter number Question: "
    "Text: Answer: briefly I you he she they we what where who when how does did will would about there all "
    "more some than other into only "
).split()


def config(family: str, **changes: Any) -> Any:
    made = _CONFIGS[family]()
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def model(
    family: str = "llama", attention: str = "eager", dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """A random model in evaluation mode; the same arguments give the same weights."""
    made = AutoModelForCausalLM.from_config(config(family, **changes), attn_implementation=attention).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                weight.copy_(0.2 * noise)
            else:  # norms begin at one (Gemma's at zero) and biases at zero
                weight.add_(0.1 * noise)
    return made.to(dtype)


def hybrid() -> PreTrainedModel:
    """A random model of four layers, of which the first three keep no keys but a state."""
    made = Qwen3NextConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=32,
        shared_expert_intermediate_size=32, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=16,
        linear_value_head_dim=16, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(made, attn_implementation="sdpa").eval()


@cache
def _trained() -> str:
    """A byte-level BPE, trained here on a few words; every text can be written with it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in (BOS, EOS, START, END)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    corpus = [" ".join(_WORDS[step:] + _WORDS[:step]) for step in range(len(_WORDS))]
    core.train_from_iterator(corpus, trainer)
    return str(core.to_str())


def tokenizer(template: str = "base", **options: Any) -> Any:
    """A fast tokenizer with one of ``TEMPLATES``; a base one puts BOS in front, as base models' tokenizers do."""
    core = Tokenizer.from_str(_trained())
    if template == "base":
        core.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)]),
            ]
        )
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=EOS, **options)
    made.add_special_tokens({"additional_special_tokens": [START, END]})
    made.chat_template = TEMPLATES[template]
    return made


def save(folder: Path, family: str = "llama", template: str = "system", **changes: Any) -> Path:
    """A model folder as Hugging Face writes it: config.json, model.safetensors, tokenizer.json."""
    model(family, **changes).save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder
