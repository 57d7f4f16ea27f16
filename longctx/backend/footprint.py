"""What the cache of a model takes for a token, told by its configuration or by a pass without numbers.

Owns the widths of keys, values and latents. Knows no text.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from longctx.backend.anatomy import UNFIT, keeps_latents
from longctx.backend.borrowed import size


def bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of one token's keys and values over all layers of ``model`` that keep some."""
    return sum(_widths(model)) * model.dtype.itemsize


def sliding(model: PreTrainedModel) -> tuple[int, int]:
    """Which of these bytes belong to layers that keep the tokens of a window only, and the longest such window."""
    config = model.config.get_text_config(decoder=True)
    windows = [getattr(layer, "sliding_window", 0) or 0 for layer in DynamicCache(config=config).layers]
    inside = sum(width for width, window in zip(_widths(model), windows, strict=True) if window)
    return inside * model.dtype.itemsize, max(windows, default=0)


def measured(model: PreTrainedModel) -> tuple[int, int, int]:
    """Bytes of one token in the cache of ``model``, which has no weights in memory, how many slide, and the window.

    As the cache of passes on the meta device grows, where those can be made: some models say less than they keep.
    """
    said, (inside, window) = bytes_per_token(model), sliding(model)
    try:
        grown = _filled(model, 2) - _filled(model, 1)
    except UNFIT:  # code that needs numbers
        grown = said
    return grown, inside * grown // max(said, 1), window


def _filled(model: PreTrainedModel, tokens: int) -> int:
    """Bytes of a cache behind a pass over so many tokens."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    with torch.inference_mode():
        model(torch.ones(1, tokens, dtype=torch.long, device=model.device), past_key_values=cache, use_cache=True)
    return size(cache)


def head_dim(config: Any) -> int:
    """The numbers of one key of one head by ``config``, of the layer that has the most."""
    return max(map(_head_dim, config.per_layer_config))


def kv_heads(config: Any) -> int:
    """How many heads have keys and values in a cache by ``config``, in the layer that has the most."""
    return max(map(_kv_heads, config.per_layer_config))


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // int(config.num_attention_heads))


def _kv_heads(config: Any) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # newer Falcons cache what they have repeated for all heads
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _widths(model: PreTrainedModel) -> list[int]:
    """The numbers that every layer keeps of a token, keys and values together."""
    config = model.config.get_text_config(decoder=True)
    keeps = [isinstance(layer, CacheLayerMixin) for layer in DynamicCache(config=config).layers]
    layers = zip(keeps, config.per_layer_config, strict=True)
    return [_width(layer) if kept else 0 for kept, layer in layers]


def _width(config: Any) -> int:
    if keeps_latents(config):
        return int(config.kv_lora_rank) + int(config.qk_rope_head_dim)
    return 2 * _kv_heads(config) * _head_dim(config)
