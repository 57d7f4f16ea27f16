"""A context read once, for as many policies as are to be held against each other on it.

Wiring, as ``contexts`` is. ``compress`` there frees keys while it goes; a Reading keeps them for the next policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from longctx.backend import compressing
from longctx.backend.fitness import bounded_kinds
from longctx.backend.forks import Held
from longctx.backend.inputs import check_ids
from longctx.backend.model import check_model, check_places, model_fingerprint
from longctx.backend.queries import Queries
from longctx.backend.stock import stock_cache
from longctx.console import listener
from longctx.contexts import PIECE, CompressedContext, Policy, chosen, row_of
from longctx.errors import BadOption, CacheError
from longctx.protocols import Progress
from longctx.values import whole

WINDOW = 128  # last queries that are kept for the policies to come


class Reading:
    """The keys and values of a context as ``model`` computed them with full attention, and its last queries."""

    def __init__(
        self,
        model: Any,
        ids: Sequence[int],
        layers: Sequence[Held],
        queries: Queries,
        partial: bool,
        fingerprint: str,
    ) -> None:
        self.token_ids, self.fingerprint = tuple(ids), fingerprint
        self._model, self._layers, self._queries, self._partial = model, tuple(layers), queries, partial

    @property
    def tokens(self) -> int:
        return len(self.token_ids)

    def compress(self, policy: Policy, progress: bool | Progress | None = None) -> CompressedContext:
        """The context bounded by ``policy``, as ``longctx.kv.compress`` makes it of the same ids.

        Raises BadOption for a policy through which the context itself has to be read, or that wants more of its last
        queries than were kept, and CacheError once weights or adapters of the model have changed.
        """
        if model_fingerprint(self._model) != self.fingerprint:
            raise CacheError(
                "the model was changed since the context was read: its keys are of another. Read it again."
            )
        method, budget, warnings = chosen(self._model, self.tokens, policy, self._partial)
        if method.grows:
            raise BadOption(f"{policy!r} reads the context through itself. Use longctx.kv.compress for it.")
        if method.window > self._queries.count:
            raise BadOption(f"{policy!r} wants the last {method.window} queries; {self._queries.count} were kept.")
        made = compressing.indexed(
            self._model, list(self._layers), self._queries, self.token_ids, method, budget, listener(progress)
        )
        return CompressedContext(made, self.token_ids, self.fingerprint, warnings)

    def stock(self) -> Any:
        """A cache of transformers over copies of the same keys, for the model's own attention.

        Raises CacheError where a layer keeps no keys.
        """
        return stock_cache(self._model, self._layers, self.tokens)

    def repeated(self, times: int) -> Reading:
        """The same keys ``times`` over. A text that means nothing, for measuring time where reading takes too long.

        Layers that see a window stay as they are. Raises BadOption unless ``times`` is at least 1.
        """
        whole("times", times, 1)
        layers = [
            held
            if held.window is not None or held.kept is not None
            else replace(held, keys=held.keys.repeat(1, times, 1), values=held.values.repeat(1, times, 1))
            for held in self._layers
        ]
        return Reading(self._model, self.token_ids * times, layers, self._queries, self._partial, self.fingerprint)


def read(
    model: Any,
    input_ids: Any,
    *,
    allow_partial: bool = False,
    piece_tokens: int = PIECE,
    progress: bool | Progress | None = None,
) -> Reading:
    """``input_ids`` [tokens] or [1, tokens], or what a tokenizer returns, read once by ``model`` for several policies.

    Raises ModelError for layers that cannot be compressed, by name, unless ``allow_partial`` leaves them alone, and
    DoesNotFit for a text that is longer than a table of learned positions.
    """
    check_model(model)
    ids = row_of(input_ids)
    check_ids(torch.tensor(ids), model)
    check_places(model, len(ids))
    whole("piece_tokens", piece_tokens, 1)
    bounded_kinds(model, allow_partial)
    layers, queries = compressing.read(model, ids, WINDOW, piece_tokens, listener(progress))
    return Reading(model, ids, layers, queries, allow_partial, model_fingerprint(model))
