"""The door to bounded caches: ``compress`` a fixed context once, attach it to the model for every question.

Wiring between backend and policies. Knows no method by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from longctx import plugins
from longctx.backend import compressing, growing
from longctx.backend.attaching import attached
from longctx.backend.bounded import BoundedCache, Context
from longctx.backend.compressing import kinds
from longctx.errors import BadOption, CacheError, EmptyInput
from longctx.protocols import KVPolicy, Progress

PIECE = 1024  # tokens of a context that are read in one pass
Policy = str | KVPolicy


class CompressedContext:
    """A context that a model has read, of which later passes read a bounded part. Shared by all its forks."""

    def __init__(self, context: Context, model: Any, warnings: tuple[str, ...]) -> None:
        self._context, self._config = context, model.config
        self.warnings = warnings

    @property
    def tokens(self) -> int:
        return self._context.tokens

    @property
    def policy(self) -> KVPolicy:
        return self._context.policy

    @property
    def nbytes(self) -> int:
        """What the context takes: keys, values and indices."""
        return sum(held.nbytes for held in self._context.layers)

    @property
    def left_alone(self) -> tuple[int, ...]:
        """The layers that see a window and are as they were."""
        return tuple(number for number, held in enumerate(self._context.layers) if held.window is not None)

    @contextmanager
    def attached(self, model: Any, *, audit_every: int = 0) -> Iterator[BoundedCache]:
        """A cache for ``model.generate(full_ids, past_key_values=cache)`` and for passes of one's own.

        The ids begin with the context's; new ids alone need an attention mask of ones for context and new ids together.
        Inside, no other thread of this library runs a pass. ``audit_every`` k measures in every k-th pass what share of
        the attention the keys have that were not read. Raises CacheError for another model.
        """
        if model.config is not self._config:
            raise CacheError(f"the context was made by another model than this {type(model).__name__}. Compress again.")
        with attached(model):
            cache = BoundedCache(self._context, audit_every)
            try:
                yield cache
            finally:
                cache.close()


def compress(
    model: Any,
    input_ids: Any,
    policy: Policy = "squeezed",
    *,
    piece_tokens: int = PIECE,
    progress: Progress | None = None,
) -> CompressedContext:
    """The context of ``input_ids`` [tokens] or [1, tokens], read once by ``model`` and bounded by ``policy``.

    A policy takes ``budget=``, the slots that a KV head reads, or ``keep=``, a share of the context turned into such a
    count here. Raises BadOption for an impossible budget and ModelError for layers that cannot be compressed, by name.
    """
    ids = torch.as_tensor(input_ids).reshape(-1).tolist() if torch.as_tensor(input_ids).ndim < 2 else _single(input_ids)
    if not ids:
        raise EmptyInput("the context has no tokens.")
    if piece_tokens < 1:
        raise BadOption(f"piece_tokens={piece_tokens} must be at least 1.")
    method: KVPolicy = plugins.resolve("kv", policy)
    kinds(model)
    budget = method.slots(len(ids))
    warnings: tuple[str, ...] = ()
    if budget >= len(ids) and not method.lossless:
        warnings = (f"all {len(ids)} tokens of the context are read: the budget of {budget} slots holds them.",)
        method = plugins.load("kv", "full")
    if method.grows:
        made = growing.grow(model, ids, method, budget, progress)
    else:
        made = compressing.read(model, ids, method, budget, piece_tokens, progress)
    return CompressedContext(made, model, warnings)


def load(path: Any, model: Any) -> CompressedContext:
    raise NotImplementedError


def _single(input_ids: Any) -> list[int]:
    rows = torch.as_tensor(input_ids)
    if rows.ndim != 2 or len(rows) != 1:
        raise BadOption(f"input_ids of shape {tuple(rows.shape)} are not one context: a context has one row.")
    return [int(token) for token in rows[0].tolist()]
