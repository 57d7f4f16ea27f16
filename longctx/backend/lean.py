"""A decoder's layers as bare matrix products, with few passes over memory between them: how segments are read faster.

Owns the arithmetic of one layer shape (norm, rotary attention, norm, gated MLP: Llama and what is built like it).
Attention, taps and caches are those of every other pass, and the number format is ``arithmetic``'s choice. Knows no
model by name: a model is recognised by its parts, and only ``Passes`` allows this, after holding it against the model's
own forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from longctx.backend.anatomy import Unlike, layer_of, norm_of, plain
from longctx.backend.arithmetic import arithmetic
from longctx.backend.attention import TAP, Tap, attend
from longctx.backend.fused import Attend, Fused
from longctx.backend.narrow import COUNTS, MOST, product, seconds, widens, wins
from longctx.backend.stamps import hooked, modules_of, stamp
from longctx.kernels import machine

_ROWS = 512  # rows worked on at a time: enough for the products, few enough for what is between them to stay in caches
_MANY = 64  # rows from which the head's weights are worth a conversion
_WORDS = 4096  # rows of the head's weights converted at a time: they stay in caches
_SHARE = 0.1  # of the weights whose products are to be faster: less is not worth another road
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Lean:
    """The decoder layers of ``model``. Raises Unlike where they have other parts than those known here."""

    def __init__(self, model: PreTrainedModel) -> None:
        if not isinstance(model, PreTrainedModel):
            raise Unlike(f"{type(model).__name__} wraps the model")
        decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
        missing = {"embed_tokens", "layers", "norm", "rotary_emb"} - {name for name, _ in decoder.named_children()}
        if missing:
            raise Unlike(f"the decoder has no {', '.join(sorted(missing))}")
        self._modules = modules_of(model)
        _no_hooks(self._modules)
        self._names = _names(self._modules)
        self.stamp = stamp(self._modules)
        self.decoder, self.head = decoder, model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self.layers = [layer_of(layer) for layer in decoder.layers]
        config = model.config.get_text_config(decoder=True)
        if len(self.layers) != config.num_hidden_layers:
            raise Unlike(f"{config.num_hidden_layers} of {len(self.layers)} layers are used")
        self.final = norm_of(decoder.norm, config.hidden_size)
        if not plain(self.head):
            raise Unlike("the model has no plain linear head")
        self.dtype = arithmetic(self.head.weight.dtype, self.head.weight.device)
        self.fused = Fused(self.layers)

    def holds(self, model: PreTrainedModel) -> bool:
        """Whether ``model`` still is what was found, part for part. Raises Unlike where hooks were set since."""
        modules = modules_of(model)
        _no_hooks(modules)
        config = model.config.get_text_config(decoder=True)
        same = modules == self._modules and _names(modules) == self._names
        return same and config.num_hidden_layers == len(self.layers) and stamp(modules) == self.stamp

    def faster(self) -> list[bool]:
        """For 0 to ``MOST`` rows, whether products that matter take less time here than in the model's own layers.

        Afterwards every shape was tried, so that no later pass has a trial in it.
        """
        shapes, head = self.fused.shapes, self.head.weight
        total = sum(count * weight.numel() for weight, count in shapes)

        def share(rows: int) -> float:
            won = sum(count * weight.numel() for weight, count in shapes if wins(rows, weight))
            if rows >= _MANY:  # pieces of a prompt, of which one row's logits are asked for
                return won / total
            return (won + int(head.numel()) * wins(rows, head)) / (total + int(head.numel()))

        return [self.fused.wins(rows) or share(rows) >= _SHARE for rows in range(MOST + 1)]

    def products(self) -> dict[int, float]:
        """Seconds that the products of a pass took by its rows when they were tried, with the head's for every row."""
        found = {rows: sum(count * seconds(rows, weight) for weight, count in self.fused.shapes) for rows in COUNTS}
        found.update((rows, self.fused.seconds(rows)) for rows in COUNTS if self.fused.wins(rows))
        return {rows: layers + seconds(rows, self.head.weight) for rows, layers in found.items()}

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
        fused: bool | None = None,
    ) -> Tensor:
        """Logits of the tokens ``keep``, [batch, kept, vocab]; arguments as in ``Passes.run``.

        ``extra`` travels to the attention function of every layer. ``dtype`` is the format of the weights and of
        attention; None: the one that is fastest for many rows. A few do not pay for a conversion of the weights, and
        what is between their products is in the format that these come in. ``fused``: by the kernel that does a layer
        in one call or two; None: where it is the faster way.
        """
        dtype, few = dtype or self.dtype, ids.numel() <= MOST
        x = self.decoder.embed_tokens(ids)
        if fused is None:
            fused = dtype == self.fused.dtype and machine.plain() and self.fused.wins(ids.numel()) and self.fused.fit()
        wide = fused or (few and widens(ids.numel(), self.layers[0].linear["gate_proj"].weight))
        x = x.to(torch.float32 if wide else dtype)
        places = torch.arange(ids.shape[1], device=ids.device)[None] if positions is None else positions
        cos, sin = self.decoder.rotary_emb(x, places)
        mask = None if valid is None else _visible(valid, ids.shape[1])

        def attended(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            layer, (keys, values) = self.layers[index], cache.update(k, v, index)
            return attend(layer.attention, q, keys, values, mask, scaling=layer.scaling, **{TAP: tap, **extra})[0]

        if fused:
            x = self.fused.run(x, (cos, sin), attended)
        else:
            weights = _Weights(dtype, few)
            for index in range(len(self.layers)):
                x = self._one(index, x, (cos[:, None], sin[:, None]), weights, attended)
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

    def _one(self, index: int, x: Tensor, turn: tuple[Tensor, Tensor], weights: _Weights, attended: Attend) -> Tensor:
        layer = self.layers[index]
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
        q, k, v = (state.to(weights.dtype) for state in (_turned(q, *turn), _turned(k, *turn), v))
        weights.add(rows, "o_proj", attended(index, q, k, v).view(len(rows), -1).to(x.dtype))
        for part in torch.split(rows, _ROWS):
            h = layer.between(part)
            gated = layer.act(weights.product("gate_proj", h)).mul_(weights.product("up_proj", h))
            weights.add(part, "down_proj", gated)
        return x


def _no_hooks(modules: list[nn.Module]) -> None:
    """Raises Unlike where calling one of ``modules`` does more than its class says."""
    if why := hooked(modules):
        raise Unlike(why)


def _names(modules: list[nn.Module]) -> list[list[str]]:
    """What each of ``modules`` calls those inside it."""
    return [list(module._modules) for module in modules]


class _Weights:
    """The linear weights of one layer at a time in the format of the pass, and the memory that its layers share.

    Fresh pages cost as much as a fifth of a pass, and the C library gives large ones back as soon as they are free.
    """

    def __init__(self, dtype: torch.dtype, few: bool) -> None:
        self.dtype = dtype
        self._few = few  # of more rows nothing is tried
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
        if self._few and (x.dtype != self.dtype or wins(x.shape[0], weight)):
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
        if self._few and (x.dtype != self.dtype or wins(x.shape[0], weight)):
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
