"""What a decoder layer is made of, told by its parts: those of Llama and of what is built like it.

Owns which parts are known and which are refused, and the norm. Computes nothing else: ``Lean`` does, once ``Passes``
has held it against the model's own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj"}


# what layers raise that are not made for other caches, masks or positions than their own
UNFIT = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)

LATENT = "latent_attention"  # what layers are called here that keep latents (DeepSeek-AI 2024, arXiv 2405.04434)


SHARED = "shared_attention"  # what layers are called here that look at the keys of an earlier one and keep none
READ = frozenset({"full_attention", "sliding_attention"})  # layers that keep keys of tokens as they are


def sharing(config: Any) -> frozenset[int]:
    """The layers by this configuration that look at the keys of an earlier one."""
    modes = getattr(config, "kv_sharing_modes", None) or ()
    return frozenset(number for number, mode in enumerate(modes) if mode == "reuse")


def keeps_latents(config: Any) -> bool:
    """Whether layers by this configuration keep no keys of heads, but what the keys of all heads are made from."""
    return bool(getattr(config, "kv_lora_rank", None))


class Unlike(Exception):
    """The model is not built of the layers that are known here; the text says what differs."""


@dataclass(frozen=True, slots=True)
class Norm:
    """Root mean square norm in float32 (Zhang and Sennrich 2019, equation 4)."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = length.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return x.to(torch.float32, copy=True).mul_(scale).mul_(self.weight.float()).to(x.dtype)


@dataclass(frozen=True, slots=True)
class Layer:
    """The parts of one layer, looked up afresh for every pass: weights may have changed since the last."""

    attention: nn.Module
    linear: dict[str, nn.Linear]
    act: Callable[[Tensor], Tensor]
    before: Norm
    between: Norm
    head_norms: tuple[Norm, Norm] | None
    head_dim: int
    scaling: float


def layer_of(layer: nn.Module) -> Layer:
    """The known parts of ``layer``. Raises Unlike where it has others, or parameters that no known part holds."""
    parts = _children(layer, "a layer", _LAYER)
    attention, mlp = parts["self_attn"], parts["mlp"]
    inner = _children(attention, "attention", _ATTENTION, _HEAD_NORMS)
    gates = _children(mlp, "the MLP", _MLP, {"act_fn"})
    linear = {name: part for name, part in {**inner, **gates}.items() if name in _ATTENTION | _MLP}
    if other := sorted(name for name, part in linear.items() if not plain(part)):
        raise Unlike(f"{', '.join(other)} are no plain linear layers")
    head_dim, scaling = getattr(attention, "head_dim", None), getattr(attention, "scaling", None)
    if not isinstance(head_dim, int) or not isinstance(scaling, float):
        raise Unlike("attention states no head_dim and scaling")
    norms = [norm_of(inner[name], head_dim) for name in ("q_norm", "k_norm") if name in inner]
    if len(norms) == 1:
        raise Unlike("only one of queries and keys is normed")
    act = gates.get("act_fn", getattr(mlp, "act_fn", None))
    if act is None:
        raise Unlike("the MLP states no act_fn")
    width = int(linear["q_proj"].in_features)  # type: ignore[arg-type]
    return Layer(
        attention,
        {name: part for name, part in linear.items() if isinstance(part, nn.Linear)},
        act,
        norm_of(parts["input_layernorm"], width),
        norm_of(parts["post_attention_layernorm"], width),
        (norms[0], norms[1]) if norms else None,
        head_dim,
        scaling,
    )


def is_silu(act: Callable[[Tensor], Tensor]) -> bool:
    """Whether an activation is SiLU, told by its numbers: it has many names."""
    numbers = torch.linspace(-40.0, 40.0, 4001, dtype=torch.float32, device="cpu").view(1, -1)
    try:
        return torch.equal(act(numbers.clone()), nn.functional.silu(numbers))
    except UNFIT:  # as it may for numbers of another format than its own
        return False


def plain(part: Any) -> bool:
    """Whether it is a linear layer and nothing more: adapters and quantised layers compute in ways of their own."""
    return type(part) is nn.Linear and type(part.weight) is nn.Parameter


def _children(module: nn.Module, what: str, needed: set[str], allowed: set[str] | None = None) -> dict[str, nn.Module]:
    found = dict(module.named_children())
    if own := [name for name, _ in module.named_parameters(recurse=False)]:
        raise Unlike(f"{what} has parameters of its own: {', '.join(own)}")
    if missing := needed - found.keys():
        raise Unlike(f"{what} has no {', '.join(sorted(missing))}")
    if extra := found.keys() - needed - (allowed or set()):
        raise Unlike(f"{what} also has {', '.join(sorted(extra))}")
    return found


def norm_of(module: nn.Module, width: int) -> Norm:
    """The norm of ``width`` numbers that ``module`` is. Raises Unlike where it is another."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if (
        not isinstance(weight, Tensor)
        or not isinstance(eps, float)
        or [n for n, _ in module.named_parameters()] != ["weight"]
    ):
        raise Unlike(f"{type(module).__name__} is no root mean square norm")
    if weight.shape != (width,):
        raise Unlike(f"a norm spans {tuple(weight.shape)} numbers, not {width}")
    return Norm(weight, eps)
