"""Copies of what keeps state of its own from call to call, so that each request has one.

Owns what such copies share: models and tokenizers, which are large and which no call changes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedTokenizerBase

from longctx.errors import BadOption

Kept = TypeVar("Kept")


def of_its_own(holder: Kept) -> Kept:
    """A deep copy of ``holder`` around the same models and tokenizers."""
    # what is deeply copied keeps what stands in the memo
    return copy.deepcopy(holder, {id(part): part for part in _shared(holder)})


def of_each_prompt(holders: Sequence[Any], batch: int, what: str) -> tuple[Any, ...]:
    """``holders`` for one prompt of a ``batch``: copies, as some remember from call to call what they were shown.

    What they share among each other the copies share too. A single prompt has them as they are. Raises BadOption where
    ``what`` cannot be copied.
    """
    if batch == 1:
        return tuple(holders)
    try:
        return of_its_own(tuple(holders))
    except (TypeError, ValueError, AttributeError, RuntimeError, copy.Error) as error:  # as their parts raise
        raise BadOption(
            f"the {what} cannot be copied ({type(error).__name__}: {error}), and each prompt of a batch needs its own. "
            "Ask one prompt at a time."
        ) from error


def _shared(holder: Any, depth: int = 3) -> Iterator[Any]:
    """The models and tokenizers that something holds, itself or inside a part of it."""
    for value in _parts(holder):
        if isinstance(value, (nn.Module, PreTrainedTokenizerBase)):
            yield value
        elif depth > 1:
            yield from _shared(value, depth - 1)


def _parts(holder: Any) -> Iterable[Any]:
    """What a container, a bound method, a partial call or any other object holds."""
    if isinstance(holder, (list, tuple)):
        return holder
    if isinstance(holder, dict):
        return holder.values()
    named = (getattr(holder, name, None) for name in ("__self__", "func", "args", "keywords"))
    return (*getattr(holder, "__dict__", {}).values(), *(one for one in named if one is not None))
