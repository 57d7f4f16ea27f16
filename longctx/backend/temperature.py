"""TempScale (arXiv 2410.24200): every attention of a model divides its scores by tau before the softmax.

Owns the registered attention function and the proof that it reached every layer. Knows no encoder and no text. It works
through the attention interface of transformers alone: no module is replaced and nothing of the library is patched.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from longctx.errors import ModelError, UsageError


class _Tempered:
    """An attention function: sdpa with scores / tau. Everything added to the scores is divided too."""

    def __init__(self, tau: float) -> None:
        self.tau = tau
        self.reached: set[int] = set()  # ids of the modules that called since the last clear

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,  # [batch, heads, rows, dim]
        key: torch.Tensor,  # [batch, kv_heads, keys, dim]
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **extra: Any,
    ) -> tuple[torch.Tensor, None]:
        self.reached.add(id(module))
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if attention_mask is not None and attention_mask.is_floating_point():
            lowest = torch.finfo(attention_mask.dtype).min
            attention_mask = (attention_mask / self.tau).clamp_min(lowest)
        if extra.get("position_bias") is not None:
            extra["position_bias"] = extra["position_bias"] / self.tau
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scale / self.tau, **extra)
        return output, None


def set_temperature(model: PreTrainedModel, tau: float, probe: dict[str, torch.Tensor]) -> None:
    """``model`` attends with softmax(scores / tau) in every layer from now on; at tau 1 it is left as it is.

    ``probe`` is a small input that is run before and after. Raises ModelError, with the model as it was, where a layer
    does not go through the attention interface or the output does not change.
    """
    if not 0.0 < tau < float("inf"):
        raise UsageError(f"temperature={tau} is not a positive number.")
    if tau == 1.0:
        return
    name, before = type(model).__name__, model.config._attn_implementation
    if before != "sdpa":
        raise ModelError(f"{name} attends with {before!r}; a temperature needs a model that attends with 'sdpa'.")
    layers = int(model.config.num_hidden_layers)
    function = _Tempered(tau)
    ours = f"longctx_temperature_{tau!r}"
    AttentionInterface.register(ours, function)
    AttentionMaskInterface.register(ours, sdpa_mask)  # without it transformers would drop the padding mask
    plain = _output(model, probe)
    reached: set[int] = set()
    proven = False
    try:
        model.set_attn_implementation(ours)
        changed = not torch.equal(plain, _output(model, probe))
        reached = set(function.reached)
        proven = changed and len(reached) == layers
    finally:
        function.reached.clear()
        if not proven:
            model.set_attn_implementation(before)
    if not proven:
        raise ModelError(
            f"temperature={tau} reached {len(reached)} of the {layers} layers of {name}; its attention does not go "
            "through the attention interface of transformers.  Use temperature=1 or another encoder."
        )


def _output(model: PreTrainedModel, probe: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = model(**probe)[0]
    return output
