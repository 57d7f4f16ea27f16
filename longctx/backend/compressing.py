"""Reads a context piece by piece and hands each layer's keys to a policy: the making of a compressed context.

Owns which layers can be compressed, the passes and their scratch memory. Knows no method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from longctx.backend.anatomy import LATENT, SHARED, keeps_latents, sharing
from longctx.backend.attention import TAP, installed
from longctx.backend.forks import Context, Held
from longctx.backend.parts import finite
from longctx.backend.queries import BEHIND, Queries, quoted
from longctx.backend.rope import frequencies
from longctx.backend.slack import QUERIES, slack
from longctx.backend.target import RowTarget
from longctx.errors import ModelError
from longctx.keys import LayerKeys
from longctx.protocols import KVPolicy, Progress

BOUNDED = "bounded"
SEEN = {"full_attention": BOUNDED, "sliding_attention": "left alone: sees a window"}


def kinds(model: PreTrainedModel, partial: bool = False) -> list[str]:
    """What each layer is, as transformers names it.

    Raises ModelError naming the layers that cannot be compressed, where not ``partial`` and some other layer can.
    """
    found = _kinds(model)
    other = {number: kind for number, kind in enumerate(found) if kind not in SEEN}
    if other and not (partial and "full_attention" in found and SHARED not in found):
        named = ", ".join(f"{number} ({kind})" for number, kind in other.items())
        instead = "Ask without kv=: the whole cache is kept then."
        if "full_attention" in found and SHARED not in found:
            instead = (
                "allow_partial=True (`longctx ask --kv-partial`) leaves them as they are, for policies that do not "
                "bound the reading of the text too."
            )
        raise ModelError(
            f"these layers of {type(model).__name__} keep no keys that could be chosen from: {named}. {instead}"
        )
    return found


def possible(model: PreTrainedModel) -> dict[str, list[int]]:
    """What can be done with the cache of which layers, in words."""
    words: dict[str, list[int]] = {}
    for number, kind in enumerate(_kinds(model)):
        words.setdefault(SEEN.get(kind, f"not possible: {kind}"), []).append(number)
    return words


def _kinds(model: PreTrainedModel) -> list[str]:
    config = model.config.get_text_config(decoder=True)
    found, _ = get_layer_types_and_kwargs(config)
    if keeps_latents(config):
        return [LATENT] * len(found)
    shares = sharing(config)
    return [SHARED if number in shares else kind for number, kind in enumerate(found)]


@torch.inference_mode()
def read(
    model: PreTrainedModel, ids: Sequence[int], window: int, piece: int, progress: Progress | None = None
) -> tuple[list[Held], Queries]:
    """The layers of ``ids`` as the model reads them with full attention, ``piece`` tokens a pass at most.

    The last ``window`` queries of every layer are kept too, and never fewer than estimates are measured on.
    """
    queries = Queries(max(window, QUERIES + BEHIND), model.dtype)
    piece = frequencies(model.config).piece(len(ids), piece)  # as one text, where rotation follows its length
    if set(kinds(model, True)) - {*SEEN}:
        return _read_by_stock(model, ids, piece, queries, progress), queries
    target = RowTarget(model, len(ids), {TAP: queries})
    for at in range(0, len(ids), piece):
        part = ids[at : at + piece]
        target.score(part, range(-1, len(part) - 1), 1)
        target.commit(range(len(part)))
        if progress is not None:
            progress("context", target.length, len(ids))
    layers = []
    for number, seen in enumerate(target.cache.windows):
        keys, values = target.cache.held(number)
        layers.append(Held(keys, values, None) if seen is None else Held(keys.clone(), values.clone(), None, seen))
    return layers, queries


def _read_by_stock(
    model: PreTrainedModel, ids: Sequence[int], piece: int, queries: Queries, progress: Progress | None
) -> list[Held]:
    """The layers of a model some of which keep no keys, in a cache of transformers."""
    cache: Any = DynamicCache(config=model.config)
    with installed(model):
        for at in range(0, len(ids), piece):
            part = torch.tensor([list(ids[at : at + piece])], device=model.device)
            model(part, past_key_values=cache, use_cache=True, logits_to_keep=1, **{TAP: queries})
            if progress is not None:
                progress("context", at + part.shape[1], len(ids))
    layers = []
    for layer, kind in zip(cache.layers, kinds(model, True), strict=True):
        if kind not in SEEN:
            nothing = torch.empty(0, 0, 0)
            layers.append(Held(nothing, nothing, None, kept=layer))
            continue
        layers.append(Held(layer.keys[0], layer.values[0], None, layer.sliding_window if layer.is_sliding else None))
    return layers


@torch.inference_mode()
def indexed(
    model: PreTrainedModel,
    layers: list[Held],
    queries: Queries,
    ids: Sequence[int],
    policy: KVPolicy,
    budget: int,
    progress: Progress | None = None,
) -> Context:
    """The context of ``ids`` for ``policy``. ``layers`` are replaced one after the other, to free their keys.

    Where the policy estimates what it does not read, the model reads fragments of the text again, to measure the
    estimates. More of the text's last queries stand in for those that it has no positions left for.
    """
    tokens = len(ids)
    for number, raw in enumerate(layers):
        if raw.kept is None:
            check_numbers(number, raw.keys, raw.values, tokens)
        if raw.window is None and raw.kept is None:
            layers[number] = _bounded(number, raw.keys, raw.values, queries, policy, budget)
        if progress is not None:
            progress("index", number + 1, len(layers))
    made = _measured(Context(tokens, settled(layers, policy), policy), queries, QUERIES)
    if any(held.slack is not None for held in made.layers):
        again = quoted(model, made, ids)
        made = _measured(made, again, again.count)
        if again.count < BEHIND:
            made = _measured(made, queries, QUERIES + BEHIND - again.count)
    return made


def check_numbers(number: int, keys: Tensor, values: Tensor, tokens: int) -> None:
    """Raises ModelError where a layer's keys or values are anything else than numbers: there is nothing to choose."""
    if not (finite(keys) and finite(values)):
        raise ModelError(
            f"layer {number} gave keys or values that are not finite within the first {tokens} tokens of the context. "
            "Load the model in a wider dtype, such as float32."
        )


def _bounded(number: int, keys: Tensor, values: Tensor, queries: Queries, policy: KVPolicy, budget: int) -> Held:
    """One layer that sees everything, with what is stored of it in the order of the policy."""
    last = queries.last[number]
    layer = LayerKeys(number, keys, values, last[:, max(0, last.shape[1] - policy.window) :], *queries.scores[number])
    index = policy.index(layer, budget)
    if index.stored is not None:
        keys, values = stored(keys, index.stored), stored(values, index.stored)
    return Held(keys, values, index)


def _measured(context: Context, queries: Queries, count: int) -> Context:
    """The context with how far the policy's estimates are off in each layer, on the last ``count`` or earlier ones."""
    layers = []
    for number, held in enumerate(context.layers):
        if held.index is not None and number in queries.last:
            last = queries.last[number][:, -count:]  # more were kept where a policy wants to see more of them
            found = slack(context.policy, held, last, *queries.scores[number])
            if found is not None and held.slack is not None:
                found = torch.maximum(found, held.slack)
            held = held if found is None else replace(held, slack=found)
        layers.append(held)
    return replace(context, layers=tuple(layers))


def settled(layers: Sequence[Held], policy: KVPolicy) -> tuple[Held, ...]:
    """The layers with their indices as the policy settles them once all are known."""
    indices = iter(policy.settle([held.index for held in layers if held.index is not None]))
    return tuple(held if held.index is None else replace(held, index=next(indices)) for held in layers)


def stored(states: Tensor, order: Tensor) -> Tensor:
    """[kv_heads, tokens, dim] at long [kv_heads, slots]."""
    return states.gather(1, order.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
