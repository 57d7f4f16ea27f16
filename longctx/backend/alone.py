"""Whose turn it is: one pass at a time, with dropout off.

Which attention a model uses is a switch on its configuration, which wrappers and readers may share without knowing of
each other, so there is one lock for all models. Owns the lock. Knows no pass.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from longctx.backend.stamps import modules_of
from longctx.errors import CacheError

_LOCK = threading.RLock()
_OWN = threading.local()  # how many turns within one another this thread has


@contextmanager
def turn() -> Iterator[None]:
    """Inside, no other thread of this library runs a pass or has the global random numbers."""
    with _LOCK:
        _OWN.depth = getattr(_OWN, "depth", 0) + 1
        try:
            yield
        finally:
            _OWN.depth -= 1


def check_free() -> None:
    """Raises CacheError where this thread has the turn, for which another one that it waits for would wait for ever."""
    if getattr(_OWN, "depth", 0):
        raise CacheError(
            "a context is attached in this thread, and a stream works in another one, whose passes would wait for it. "
            "Use ask, or stream once the context is no longer attached."
        )


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Inside, no other thread of this library runs a pass, and dropout is off; the modes come back afterwards."""
    with turn(), answering(modules_of(model)):
        yield


@contextmanager
def answering(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, dropout of ``modules`` is off; their modes come back afterwards."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
