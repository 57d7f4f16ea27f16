"""What was found by trying a model, kept for as long as it holds.

Owns the rule of when it holds no more. Knows no trial.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from longctx.backend.alone import turn
from longctx.backend.stamps import hooks_of, modules_of, stamp

Found = TypeVar("Found")
_Kept = WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], Found]]


class Memo(Generic[Found]):
    """The latest findings about each model, by its stamp and the hooks it carried: one with hooks, one without.

    A memo, not state: a model of the same stamp and hooks gives the same answers, which cost a few short passes.
    """

    def __init__(self) -> None:
        self._bare: _Kept[Found] = WeakKeyDictionary()
        self._hooked: _Kept[Found] = WeakKeyDictionary()

    def of(self, model: nn.Module, attempt: Callable[[], Found], *more: object) -> Found:
        """What ``attempt`` found for ``model`` as it is now and ``more``; what it raises is not kept."""
        with turn():  # threads wait for the first of them
            modules = modules_of(model)
            hooks = hooks_of(modules)
            kept, now = self._hooked if hooks else self._bare, (stamp(modules), hooks, *more)
            if model not in kept or kept[model][0] != now:
                kept[model] = now, attempt()
            return kept[model][1]
