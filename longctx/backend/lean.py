"""A decoder's layers as bare matrix products, with few passes over memory between them: how segments are read faster.

Owns the arithmetic of one layer shape (norm, rotary attention, norm, gated MLP: Llama and what is built like it).
Attention, taps and caches are those of every other pass, and the number format is ``arithmetic``'s choice. Knows no
model by name: a model is recognised by its parts, and only ``Passes`` allows this, after holding it against the model's
own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from longctx.backend.arithmetic import arithmetic
from longctx.backend.attention import TAP, Tap, attend
from longctx.backend.narrow import MOST, product, wins

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj"}
_ROWS = 512  # rows worked on at a time: enough for the products, few enough for what is between them to stay in caches
_MANY = 64  # rows from which the head's weights are worth a conversion
_WORDS = 4096  # rows of the head's weights converted at a time: they stay in caches
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Unlike(Exception):
    """The model is not built of the layers that are known here; the text says what differs."""


@dataclass(frozen=True, slots=True)
class _Norm:
    """Root mean square norm in float32 (Zhang and Sennrich 2019, equation 4)."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = length.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return x.to(torch.float32, copy=True).mul_(scale).mul_(self.weight.float()).to(x.dtype)


@dataclass(frozen=True, slots=True)
class _Layer:
    """The parts of one layer, looked up afresh for every pass: weights may have changed since the last."""

    attention: nn.Module
    linear: dict[str, nn.Linear]
    act: Callable[[Tensor], Tensor]
    before: _Norm
    between: _Norm
    head_norms: tuple[_Norm, _Norm] | None
    head_dim: int
    scaling: float


class Lean:
    """The decoder layers of ``model``. Raises Unlike where they have other parts than those known here."""

    def __init__(self, model: PreTrainedModel) -> None:
        if not isinstance(model, PreTrainedModel):
            raise Unlike(f"{type(model).__name__} wraps the model")
        decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
        missing = {"embed_tokens", "layers", "norm", "rotary_emb"} - {name for name, _ in decoder.named_children()}
        if missing:
            raise Unlike(f"the decoder has no {', '.join(sorted(missing))}")
        modules = list(model.modules())
        if any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in modules):
            raise Unlike("modules of the model carry hooks or a forward of their own")
        if nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks:
            raise Unlike("hooks are set for all modules there are")
        self.formulas = tuple(type(module).forward for module in modules)
        self.decoder, self.head = decoder, model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self.layers = [_layer(layer) for layer in decoder.layers]
        self.final = _norm(decoder.norm, model.config.get_text_config(decoder=True).hidden_size)
        if not isinstance(self.head, nn.Linear):
            raise Unlike("the model has no linear head")
        self.dtype = arithmetic(self.head.weight.dtype, self.head.weight.device)

    def faster(self) -> list[bool]:
        """For 0 to ``MOST`` rows, whether their products take less time here than in the model's own layers.

        Afterwards every shape was tried, so that no later pass has a trial in it.
        """
        every = (*(part for layer in self.layers for part in layer.linear.values()), self.head)
        weights = {part.weight.shape: part.weight for part in every}
        return [any([wins(rows, weight) for weight in weights.values()]) for rows in range(MOST + 1)]

    def run(
        self,
        ids: Tensor,
        cache: Any,
        tap: Tap | None,
        keep: list[int],
        positions: Tensor | None,
        valid: Tensor | None,
        extra: Mapping[str, Any] = _NOTHING,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Logits of the tokens ``keep``, [batch, kept, vocab]; arguments as in ``Passes.run``.

        ``extra`` travels to the attention function of every layer. ``dtype`` is the format of the products; None: the
        fastest for many rows. A few do not pay for a conversion of the weights.
        """
        x = self.decoder.embed_tokens(ids)
        x = x.to(self.dtype if dtype is None else dtype)
        places = torch.arange(ids.shape[1], device=ids.device)[None] if positions is None else positions
        cos, sin = self.decoder.rotary_emb(x, places)
        turn = cos[:, None], sin[:, None]
        mask = None if valid is None else _visible(valid, ids.shape[1])
        weights = _Weights(x.dtype, few=ids.numel() <= MOST)
        for index, layer in enumerate(self.layers):
            x = self._one(layer, index, x, turn, cache, mask, weights, {TAP: tap, **extra})
        kept = self.final(x[:, keep].float())
        return self._logits(kept.view(-1, kept.shape[-1])).view(*kept.shape[:2], -1)

    def _logits(self, rows: Tensor) -> Tensor:
        """The head's product with ``rows``, float32 [rows, width], in the format of the head's weights."""
        weight, bias = self.head.weight, self.head.bias
        own = rows.to(weight.dtype)
        if self.dtype == weight.dtype or len(own) < _MANY:
            return product(own, weight, bias)
        out, wide = own.new_empty(len(own), len(weight)), rows.to(self.dtype)
        for at in range(0, len(weight), _WORDS):
            some = slice(at, at + _WORDS)
            out[:, some] = F.linear(
                wide, weight[some].to(self.dtype), None if bias is None else bias[some].to(self.dtype)
            )
        return out

    def _one(
        self,
        layer: _Layer,
        index: int,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        cache: Any,
        mask: Tensor | None,
        weights: _Weights,
        seen: Mapping[str, Any],
    ) -> Tensor:
        batch, tokens, width = x.shape
        weights.take(layer.linear)
        rows = x.view(-1, width)
        states = {name: x.new_empty(len(rows), weights.width(name)) for name in ("q_proj", "k_proj", "v_proj")}
        for at in range(0, len(rows), _ROWS):
            h = layer.before(rows[at : at + _ROWS])
            for name, state in states.items():
                weights.product(name, h, state[at : at + _ROWS])
        q, k, v = (state.view(batch, tokens, -1, layer.head_dim).transpose(1, 2) for state in states.values())
        if layer.head_norms is not None:
            q, k = layer.head_norms[0](q), layer.head_norms[1](k)
        keys, values = cache.update(_turned(k, *turn), v, index)
        out, _ = attend(layer.attention, _turned(q, *turn), keys, values, mask, scaling=layer.scaling, **seen)
        weights.add(rows, "o_proj", out.view(len(rows), -1))
        for part in torch.split(rows, _ROWS):
            h = layer.between(part)
            gated = layer.act(weights.product("gate_proj", h)).mul_(weights.product("up_proj", h))
            weights.add(part, "down_proj", gated)
        return x


class _Weights:
    """The linear weights of one layer at a time in the format of the pass, and the memory that its layers share.

    Fresh pages cost as much as a fifth of a pass, and the C library gives large ones back as soon as they are free.
    """

    def __init__(self, dtype: torch.dtype, few: bool) -> None:
        self.dtype = dtype
        self._few = few  # a last piece of many rows is not worth a trial
        self._room: dict[str, Tensor] = {}
        self._products: dict[str, Tensor] = {}
        self._now: dict[str, tuple[Tensor, Tensor | None]] = {}

    def take(self, linear: dict[str, nn.Linear]) -> None:
        """Afterwards calls use the weights of ``linear``."""
        for name, module in linear.items():
            bias = None if module.bias is None else module.bias.to(self.dtype)
            self._now[name] = self._converted(name, module.weight), bias

    def width(self, name: str) -> int:
        """How many numbers a row of the product has."""
        return int(self._now[name][0].shape[0])

    def product(self, name: str, x: Tensor, out: Tensor | None = None) -> Tensor:
        """The layer's output for ``x`` [rows, in]; without ``out`` it holds until the next product of that name."""
        weight, bias = self._now[name]
        if self._few and wins(len(x), weight):
            made = product(x, weight, bias)
            return made if out is None else out.copy_(made)
        if out is None:
            held = self._products.get(name)
            if held is None or held.shape[0] < len(x) or held.shape[1] != len(weight):
                held = self._products[name] = x.new_empty(len(x), len(weight))
            out = held[: len(x)]
        return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)

    def add(self, x: Tensor, name: str, y: Tensor) -> None:
        """Adds the product of ``y`` to ``x`` in place, both [rows, width]."""
        weight, bias = self._now[name]
        if self._few and wins(len(x), weight):
            x.add_(product(y, weight))
        else:
            x.addmm_(y, weight.t())
        if bias is not None:
            x.add_(bias)

    def _converted(self, name: str, weight: Tensor) -> Tensor:
        if weight.dtype == self.dtype:
            return weight
        if name not in self._room or self._room[name].shape != weight.shape:
            self._room[name] = torch.empty_like(weight, dtype=self.dtype)
        return self._room[name].copy_(weight)


def _visible(valid: Tensor, new: int) -> Tensor:
    """Which slots of ``valid`` [batch, slots] the last ``new`` see, [batch, 1, new, slots]: none later than itself."""
    slots = valid.shape[1]
    at = torch.arange(slots, device=valid.device)
    return valid[:, None, None] & (at <= at[slots - new :, None])


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` [batch, heads, tokens, dim] rotated to its positions: RoPE, halves of the head paired (Su et al. 2021)."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = torch.empty_like(x)
    torch.mul(first, cos[..., :half], out=out[..., :half]).addcmul_(second, sin[..., :half], value=-1)
    torch.mul(second, cos[..., half:], out=out[..., half:]).addcmul_(first, sin[..., half:])
    return out


def _layer(layer: nn.Module) -> _Layer:
    parts = _children(layer, "a layer", _LAYER)
    attention, mlp = parts["self_attn"], parts["mlp"]
    inner = _children(attention, "attention", _ATTENTION, _HEAD_NORMS)
    gates = _children(mlp, "the MLP", _MLP, {"act_fn"})
    linear = {name: part for name, part in {**inner, **gates}.items() if name in _ATTENTION | _MLP}
    # subclasses (adapters, quantised layers) and quantised tensors compute in ways of their own
    plain = {name for name, part in linear.items() if type(part) is nn.Linear and type(part.weight) is nn.Parameter}
    if other := sorted(linear.keys() - plain):
        raise Unlike(f"{', '.join(other)} are no plain linear layers")
    head_dim, scaling = getattr(attention, "head_dim", None), getattr(attention, "scaling", None)
    if not isinstance(head_dim, int) or not isinstance(scaling, float):
        raise Unlike("attention states no head_dim and scaling")
    norms = [_norm(inner[name], head_dim) for name in ("q_norm", "k_norm") if name in inner]
    if len(norms) == 1:
        raise Unlike("only one of queries and keys is normed")
    width = int(linear["q_proj"].in_features)  # type: ignore[arg-type]
    return _Layer(
        attention,
        {name: part for name, part in linear.items() if isinstance(part, nn.Linear)},
        gates["act_fn"] if "act_fn" in gates else mlp.act_fn,  # type: ignore[arg-type]
        _norm(parts["input_layernorm"], width),
        _norm(parts["post_attention_layernorm"], width),
        (norms[0], norms[1]) if norms else None,
        head_dim,
        scaling,
    )


def _children(module: nn.Module, what: str, needed: set[str], allowed: set[str] | None = None) -> dict[str, nn.Module]:
    found = dict(module.named_children())
    if missing := needed - found.keys():
        raise Unlike(f"{what} has no {', '.join(sorted(missing))}")
    if extra := found.keys() - needed - (allowed or set()):
        raise Unlike(f"{what} also has {', '.join(sorted(extra))}")
    return found


def _norm(module: nn.Module, width: int) -> _Norm:
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
    return _Norm(weight, eps)
