"""The context that the last question of a reader was asked behind: the next question about the same text finds it here.

Owns when it is made anew. Wiring, as ``contexts`` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longctx import plugins
from longctx.backend.alone import turn
from longctx.backend.model import model_fingerprint
from longctx.backend.stamps import hooks_of, modules_of, stamp
from longctx.contexts import CompressedContext, Policy, compress
from longctx.protocols import Progress


class LastContext:
    """Keeps one context, for one model, policy and text; threads that ask at once wait for each other."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._context: CompressedContext | None = None

    def __call__(
        self, model: Any, ids: Sequence[int], policy: Policy, allow_partial: bool, progress: Progress | None
    ) -> CompressedContext:
        """The context of ``ids``, as ``compress`` makes it."""
        parts = modules_of(model)  # the fingerprint is of a sample, and knows nothing of hooks and places
        now = model_fingerprint(model), stamp(parts), hooks_of(parts)
        key = (*now, tuple(ids), plugins.resolve("kv", policy), allow_partial)
        with turn():  # compressing takes it too: a lock of its own could wait for one who waits for this
            found = self._context if key == self._key else None
            if found is None:
                self._context = None  # before another one is made: two may not fit
                found = compress(model, ids, policy, allow_partial=allow_partial, progress=progress)
                self._context, self._key = found, key
            return found
