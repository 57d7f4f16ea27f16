"""Copies of what keeps state of its own from call to call, so that each request has one.

Owns what such copies share: models and tokenizers, which are large and which no call changes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedTokenizerBase

Kept = TypeVar("Kept")


def of_its_own(holder: Kept) -> Kept:
    """A deep copy of ``holder`` around the same models and tokenizers."""
    # what is deeply copied keeps what stands in the memo
    return copy.deepcopy(holder, {id(part): part for part in _shared(holder)})


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
