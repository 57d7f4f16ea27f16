"""What the cache of a model takes for a token, told by its configuration.

Owns the widths of keys, values and latents. Knows no text and no cache that was filled.
"""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, get_layer_types_and_kwargs

from longctx.backend.anatomy import keeps_latents


def bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of one token's keys and values over all layers of ``model`` that keep some."""
    return sum(_widths(model)) * model.dtype.itemsize


def sliding(model: PreTrainedModel) -> tuple[int, int]:
    """Which of these bytes belong to layers that keep the tokens of a window only, and the longest such window."""
    config = model.config.get_text_config(decoder=True)
    windows = [getattr(layer, "sliding_window", 0) or 0 for layer in DynamicCache(config=config).layers]
    inside = sum(width for width, window in zip(_widths(model), windows, strict=True) if window)
    return inside * model.dtype.itemsize, max(windows, default=0)


def head_dim(config: Any) -> int:
    """The numbers of one key of one head by ``config``."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // int(config.num_attention_heads))


def kv_heads(config: Any) -> int:
    """How many heads have keys and values in a cache by ``config``."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # newer Falcons cache what they have repeated for all heads
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _widths(model: PreTrainedModel) -> list[int]:
    """The numbers that every layer keeps of a token, keys and values together."""
    config = model.config.get_text_config(decoder=True)
    keeps = [isinstance(layer, CacheLayerMixin) for layer in DynamicCache(config=config).layers]
    kinds, _ = get_layer_types_and_kwargs(config)
    layers = zip(keeps, kinds, config.per_layer_config, strict=False)  # more kinds may be named than there are layers
    return [_width(layer, kind) if kept else 0 for kept, kind, layer in layers]


def _width(config: Any, kind: str) -> int:
    if keeps_latents(config):
        return int(config.kv_lora_rank) + int(config.qk_rope_head_dim)
    return 2 * kv_heads(config) * head_dim(config)
