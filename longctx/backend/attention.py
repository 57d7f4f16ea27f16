"""The one attention function of the library, registered with transformers under one name together with its mask.

Owns how rows of attention are observed (``Tap``) and how a pass is ended early. Computes the layer's output exactly as
the stock implementations do. Knows no text, no method and no model family: soft caps, sinks and sliding windows arrive
as arguments from the model's own layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from longctx.backend import products, quick
from longctx.backend.alone import answering, turn
from longctx.backend.arithmetic import arithmetic
from longctx.backend.bounded import BoundedCache
from longctx.backend.packs import PackCache
from longctx.backend.parts import capped
from longctx.backend.rows import Rows
from longctx.backend.stamps import modules_of
from longctx.errors import ModelError

NAME = "longctx"
TAP = "longctx_tap"  # the keyword by which a Tap travels through the model's forward to every attention layer
ROWS = "longctx_rows"  # the same for the Rows of a pass that verifies drafted tokens
PACK = "longctx_pack"  # the same for the PackCache of a pass over the rows of several requests
HELD = "longctx_held"  # the same for the BoundedCache of a pass over a compressed context
# a memo, not state: the kinds of the parts of a model that took this attention, all by one configuration. Setting and
# unsetting it through the model goes through all its modules: a fiftieth of a small one's pass
_ONE_SWITCH: WeakKeyDictionary[PreTrainedModel, tuple[type, ...]] = WeakKeyDictionary()
_BLOCK = 256  # query rows per block where scores are materialised (soft caps and sinks)


class StopReading(Exception):
    """Raised inside a forward pass once the deepest layer asked for has been seen; never leaves the backend."""


class Tap:
    """Watches chosen layers during one forward pass and may end it after layer ``stop``.

    ``layers`` maps a layer index to the query heads wanted there (None: all). ``rows`` is the range of query rows.
    ``sink(layer, weights)`` receives float32 attention probabilities ``[batch, heads, rows, keys]``.
    """

    def __init__(
        self,
        layers: Mapping[int, Tensor | None],
        rows: slice,
        sink: Callable[[int, Tensor], None],
        stop: int | None = None,
    ) -> None:
        self.layers, self.rows, self.sink, self.stop = layers, rows, sink, stop

    def see(self, layer: int, seen: Seen) -> None:
        if layer in self.layers:
            form = arithmetic(seen.query.dtype, seen.query.device)  # the one at hand may take ten times as long
            self.sink(layer, seen.probabilities(self.rows, self.layers[layer], form))
        if self.stop is not None and layer >= self.stop:
            raise StopReading


class Seen:
    """Queries and keys of one layer, from which single attention rows can be computed on demand."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scaling: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> None:
        self.query, self.key, self.mask = query, key, mask
        self.scaling, self.softcap, self.sinks = scaling, softcap, sinks

    def probabilities(self, rows: slice, heads: Tensor | None, form: torch.dtype | None = None) -> Tensor:
        """Softmax rows in float32, [batch, heads, rows, keys]; a sink takes its share and is not returned.

        Products are made in ``form``; None: in the format of queries and keys, as stock attention makes them.
        """
        batch, all_heads, length, dim = self.query.shape
        groups = all_heads // self.key.shape[1]
        start, stop, _ = rows.indices(length)
        query, key = self.query[:, :, start:stop], self.key
        if heads is None:
            query = query.reshape(batch, -1, groups * (stop - start), dim)
        else:
            query, key = query[:, heads], key[:, heads // groups]
        if form is not None:
            query, key = query.to(form), key.to(form)
        count = all_heads if heads is None else len(heads)
        scores = (query @ key.transpose(-1, -2)).view(batch, count, stop - start, -1)
        scores = capped(scores.float() * self.scaling, self.softcap)
        scores = scores + _additive(self.mask, start, stop, length, scores)
        if self.sinks is None:
            return scores.softmax(-1)
        sinks = self.sinks.float() if heads is None else self.sinks[heads].float()
        column = sinks.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.cat((scores, column), -1).softmax(-1)[..., :-1]


def attend(
    module: torch.nn.Module,
    query: Tensor,  # [batch, heads, queries, dim]
    key: Tensor,  # [batch, kv_heads, keys, dim]
    value: Tensor,  # [batch, kv_heads, keys, dim]
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention output [batch, queries, heads, dim], equal to stock attention.

    A Tap in ``kwargs`` sees the layer first; Rows say who sees what in place of the mask; a PackCache has the rows of
    several requests attend each to its own; a BoundedCache attends by itself in the layers it bounds. Raises
    StopReading when the Tap asks for it.
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    tap: Tap | None = kwargs.get(TAP)
    if tap is not None:
        seen = Seen(query, key, attention_mask, scale, softcap, s_aux)
        tap.see(int(module.layer_idx), seen)  # type: ignore[arg-type]
    held: BoundedCache | None = kwargs.get(HELD)
    if held is not None:
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        if (bounded := held.bounded(layer)) is not None:
            out = bounded.attend(query, key, value, attention_mask, scale, softcap, s_aux)
            return out.transpose(1, 2).contiguous(), None
        padded = held.window_mask(layer, query.shape[2], key.shape[2])
        attention_mask = attention_mask if padded is None else padded
    pack: PackCache | None = kwargs.get(PACK)
    if pack is not None:
        own = [
            attend(module, q, k, v, None, dropout, scaling, softcap, s_aux, **{ROWS: one})[0]
            for one, q, k, v in pack.parts(int(module.layer_idx), query)  # type: ignore[arg-type]
        ]
        return torch.cat(own, 1), None
    plain = softcap is None and s_aux is None
    rows: Rows | None = kwargs.get(ROWS)
    if rows is not None:
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        last = query.shape[2]  # some layers look at the rows alone whose logits are wanted: they are the last
        whole = plain and 1 < last < key.shape[2] and last == rows.count and rows.whole(layer)
        if whole and rows.short(key.shape[2]):
            return rows.at_once(query, key, value, scale).transpose(1, 2).contiguous(), None
        if whole and not (rows.is_chain and products.wins(query, key, masked=False)):
            return rows.attend(query, key, value, scale).transpose(1, 2).contiguous(), None
        attention_mask = None if whole else rows.mask(layer, key.shape[2])
        attention_mask = None if attention_mask is None else attention_mask[:, :, -last:]
    dropped = dropout if module.training else 0.0
    if not plain:
        out = _explicit(query, key, value, attention_mask, scale, softcap, s_aux)
    elif _by_products(query, key, attention_mask, rows) and not dropped:
        out = products.attend(query, key, value, attention_mask, scale)
    elif attention_mask is None and query.shape[2] > 1:
        gqa = query.shape[1] != key.shape[1]
        if query.shape[2] != key.shape[2]:  # is_causal would align the wrong corner
            attention_mask = _causal(0, query.shape[2], query.shape[2], key.shape[2], query.device)
        causal = attention_mask is None
        out = F.scaled_dot_product_attention(
            query, key, value, attention_mask, dropped, is_causal=causal, scale=scale, enable_gqa=gqa
        )
    else:
        out = _folded(query, key, value, attention_mask, scale, dropped)
    return out.transpose(1, 2).contiguous(), None


def _by_products(query: Tensor, key: Tensor, mask: Tensor | None, rows: Rows | None) -> bool:
    """Whether plain products are the way: for rows in order, by which that is tried, and a mask that adds nothing."""
    in_order = rows is None or rows.is_chain
    said = mask is None or mask.dtype == torch.bool
    return in_order and said and products.wins(query, key, mask is not None)


def _folded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
    """SDPA with the query heads of one KV head as extra rows, so that keys and values are never repeated."""
    batch, heads, length, dim = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    if groups == 1 and mask is not None:
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale)
    if mask is not None:
        mask = mask.expand(batch, mask.shape[1], length, mask.shape[-1])
        per_head = mask.shape[1] > 1
        mask = mask.reshape(batch, kv_heads, groups * length, -1) if per_head else mask.repeat(1, 1, groups, 1)
    rows = query.reshape(batch, kv_heads, groups * length, dim)
    if mask is None and not dropout and (found := quick.over(rows, key, value, scale)) is not None:
        return found[0].to(query.dtype).view(batch, heads, length, -1)
    out = F.scaled_dot_product_attention(rows, key, value, mask, dropout, scale=scale)
    return out.reshape(batch, heads, length, -1)


def _explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention with materialised scores, a block of query rows at a time: what SDPA cannot do (soft caps, sinks)."""
    batch, heads, length, dim = query.shape
    groups = heads // key.shape[1]
    rows = Seen(query, key, mask, scale, softcap, sinks)
    out = []
    for start in range(0, length, _BLOCK):
        stop = min(start + _BLOCK, length)
        weights = rows.probabilities(slice(start, stop), None).to(value.dtype)
        folded = weights.view(batch, key.shape[1], groups * (stop - start), -1) @ value
        out.append(folded.view(batch, heads, stop - start, -1))
    return torch.cat(out, 2)


def _causal(start: int, stop: int, length: int, keys: int, device: torch.device) -> Tensor:
    """Which keys the query rows [start, stop) of ``length`` may see, the last row aligned with the last key."""
    positions = torch.arange(keys - length + start, keys - length + stop, device=device)
    return torch.arange(keys, device=device) <= positions[:, None]


def _additive(mask: Tensor | None, start: int, stop: int, length: int, scores: Tensor) -> Tensor:
    """The mask of some query rows as numbers to add; without a mask the rows are causal."""
    allowed = _causal(start, stop, length, scores.shape[-1], scores.device) if mask is None else mask[:, :, start:stop]
    if allowed.dtype != torch.bool:
        return allowed.float()
    # not -inf: a row of padding sees nothing at all and must stay finite
    return torch.zeros_like(allowed, dtype=torch.float32).masked_fill_(~allowed, torch.finfo(torch.float32).min)


def register() -> None:
    """Make the function known to transformers with its mask function; doing it again changes nothing.

    The mask must be registered under the same name: a name without one gets no mask at all, which is wrong for every
    padded batch and every pass over a filled cache.
    """
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def installed(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model attends through this module, alone; afterwards its own implementation is back."""
    register()
    modules = modules_of(model)
    with turn(), answering(modules):
        config, before = model.config, _implementations(model.config)
        models = [module for module in modules if isinstance(module, PreTrainedModel)]
        kinds = tuple(map(type, models))
        # looked at every time: a part can be put in the place of another, with a configuration of its own
        shared = not config.sub_configs and all(part.config is config for part in models)
        known = shared and _ONE_SWITCH.get(model) == kinds
        try:
            if known:
                config._attn_implementation = NAME
            else:
                model.set_attn_implementation(NAME)
            if config._attn_implementation != NAME:
                raise ModelError(
                    f"{type(model).__name__} does not take its attention from the attention interface, so it cannot be "
                    "observed. Use a selector that needs no model signals, such as bm25 or dense."
                )
            yield
        finally:
            if known:
                config._attn_implementation = before
            else:
                model.set_attn_implementation(before)
        if shared and not known:
            _ONE_SWITCH[model] = kinds


def _switches(config: Any) -> bool:
    """Whether a configuration inside another chooses an attention implementation at all."""
    return config is not None and config._attn_implementation is not None


def _implementations(config: Any) -> dict[str, Any]:
    """The attention implementations of a configuration and those inside it, in the form that sets them again."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    inner = {name: _implementations(part) for name, part in parts.items() if _switches(part)}
    return {"": config._attn_implementation, **inner}
