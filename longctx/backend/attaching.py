"""Puts a bounded cache into a model's passes: announced before each, checked behind each, gone afterwards.

Owns the hooks. What a caller hands to the model is held against the cache here, as nobody else sees both.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from warnings import warn

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longctx.backend.attention import HELD, installed
from longctx.backend.bounded import BoundedCache
from longctx.backend.forks import Context
from longctx.backend.rope import turned
from longctx.backend.stamps import modules_of
from longctx.errors import CacheError, ModelError

_FULL_MASK = "Give the whole ids, or new ids with attention_mask of ones for context and new ids together"


@contextmanager
def attached(model: PreTrainedModel) -> Iterator[None]:
    """Inside, passes of ``model`` over a BoundedCache read what its policy chooses; all others are as ever."""
    own = generating(model)
    with installed(model):
        before = own.register_forward_pre_hook(_announce, with_kwargs=True)
        behind = own.register_forward_hook(_conclude, with_kwargs=True, always_call=True)
        try:
            yield
        finally:
            before.remove()
            behind.remove()


def generating(model: torch.nn.Module) -> torch.nn.Module:
    """The part that ``model.generate`` makes its passes with: a wrapper, such as peft's, hands it on to its own."""
    return next((part for part in modules_of(model) if isinstance(part, PreTrainedModel)), model)


def check_place(context: Context, model: PreTrainedModel) -> None:
    """Raises CacheError where a context's keys are on other devices than the model."""
    there = {held.keys.device for held in context.layers if held.kept is None}
    if not there <= {weight.device for weight in model.parameters()}:
        raise CacheError(
            f"the context is on {', '.join(map(str, there))} and the model on {model.device}. Compress it again there."
        )


@contextmanager
def announced(model: PreTrainedModel, cache: BoundedCache, ids: Tensor) -> Iterator[bool]:
    """Inside, a pass over ``ids`` [1, tokens] behind ``cache`` may go to the layers of ``model`` without the model.

    False, and no pass may, where no context is attached to ``model`` or the cache is closed: the model's own pass says
    so then. Raises CacheError where the ids do not go on from the cache, and ModelError where a layer did not attend.
    """
    own = generating(model)
    known = not cache.is_closed and _announce in own._forward_pre_hooks.values()
    if known:
        _check_home(own, cache)
        _check(cache, {}, ids)
        cache.announce(None)
    try:
        yield known
        if known:
            cache.is_announced = False
    finally:
        cache.is_announced = cache.is_broken
    if known:
        _all_attended(model, cache)


def _announce(model: torch.nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    if len(args) > 1:  # a mask may be among them
        given = {**dict(zip(inspect.signature(model.forward).parameters, args, strict=False)), **given}
        args = ()
    cache = given.get("past_key_values")
    if type(cache) is not BoundedCache or cache.is_closed:
        return None
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in model.parameters()):
        raise CacheError("a context has no gradients. Put the pass into `with torch.no_grad():`.")
    ids = args[0] if args else given.get("input_ids")
    new = ids if ids is not None else given.get("inputs_embeds")
    _check_home(model, cache)
    _check(cache, given, new)
    _say_turned(model, cache, new)
    cache.announce(given.get("attention_mask"))
    return args, {**given, HELD: cache}


def _say_turned(model: Any, cache: BoundedCache, new: Any) -> None:
    """Warns once where the model rotates ``new`` tokens behind the context otherwise than it rotated the context."""
    if cache.is_told:
        return
    length = next(iter(cache.lengths)) + int(new.shape[1])
    if said := turned(model.config, cache.tokens, length):
        cache.is_told = True
        warn(said, stacklevel=2)


def _conclude(model: torch.nn.Module, args: tuple[Any, ...], given: dict[str, Any], out: Any) -> None:
    cache = given.get(HELD)
    if cache is None:
        return
    if out is None:
        cache.is_announced = cache.is_broken
    else:
        cache.is_announced = False
        _all_attended(model, cache)


def _all_attended(model: torch.nn.Module, cache: BoundedCache) -> None:
    if cache.waiting:
        raise ModelError(
            f"layers {cache.waiting} of {type(model).__name__} do not attend through the attention interface."
        )


def _check_home(model: torch.nn.Module, cache: BoundedCache) -> None:
    """Raises CacheError where the cache is attached to another model than this one."""
    if cache.home not in (None, model):
        raise CacheError(
            f"the cache is attached to another {type(cache.home).__name__}, whose keys mean nothing to this one. "
            f"Compress the context with this model."
        )


def _check(cache: BoundedCache, given: dict[str, Any], new: Any) -> None:
    """Raises CacheError where ``new`` ids or embeddings, mask and positions do not go on from the cache."""
    lengths = cache.lengths
    if len(lengths) > 1 or cache.is_broken:
        raise CacheError("an earlier pass failed halfway, so the layers hold different tokens. Use rewind().")
    if given.get("use_cache") is False:  # generate then feeds all ids again in every step
        raise CacheError("use_cache=False does not go with a cache that holds a context. Leave it out.")
    length = lengths.pop()
    if new is None or not new.shape[1]:
        raise CacheError(f"no new token behind the {length} in the cache. {_FULL_MASK}.")
    if cache.kept and len(new) > 1:
        raise CacheError(
            f"layers {cache.kept} were left as they are and hold one row, and {len(new)} are asked. Ask one question "
            f"at a time, without beams."
        )
    if cache.rows not in (None, len(new)):
        raise CacheError(
            f"the cache holds {cache.rows} rows behind its context, and {len(new)} are asked. Use rewind() for another "
            "question, or batch_select_indices() for some of the rows."
        )
    positions, mask = given.get("position_ids"), given.get("attention_mask")
    if positions is not None:
        # of each row the first and the last, in one question to the device
        ends = positions.reshape(-1, positions.shape[-1])[:, [0, -1]].tolist()
        first, last = (min(column) for column in zip(*ends, strict=True))
        if last < cache.tokens:
            raise CacheError(f"position {last} lies inside the context of {cache.tokens} tokens. {_FULL_MASK}.")
        # images have positions of three kinds, which lie otherwise
        if mask is None and positions.ndim == 2 and any(start != length for start, _ in ends):
            raise CacheError(
                f"the new tokens begin at position {first}, and the cache holds {length} tokens. What follows the "
                "context in it must begin the ids too: use rewind() before another question."
            )
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            raise CacheError(f"attention_mask= must have the shape [batch, tokens]. {_FULL_MASK}.")
        if mask.shape[1] != length + new.shape[1]:
            raise CacheError(
                f"the attention mask has {mask.shape[1]} columns for {length} tokens in the cache and {new.shape[1]} "
                f"new ones. {_FULL_MASK}."
            )
        if not bool(mask[:, : cache.tokens].all()):
            raise CacheError(
                "the attention mask hides tokens of the context. Pad a batch of questions between context and question."
            )
