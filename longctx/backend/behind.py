"""Passes that the library itself makes over a compressed context, by the shorter road where there is one.

Owns the arguments of such a pass. What a user's own ``model.generate`` does with the same cache goes through the model;
these are for reading a context through its policy, for measuring one, and for answers. Knows no method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longctx.backend.attaching import announced
from longctx.backend.attention import HELD
from longctx.backend.bounded import BoundedCache
from longctx.backend.roads import Road
from longctx.backend.target import StockTarget
from longctx.drafts import Kind


class Behind:
    """Passes over ``model``, a batch of one, while a context is attached to it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._road = model, Road(model)

    def shorter(
        self, tokens: Sequence[int], positions: Tensor, wanted: int, cache: BoundedCache, **extra: Any
    ) -> Tensor | None:
        """Logits [wanted, vocab] of the last of ``tokens`` at ``positions`` [tokens]; None: no road is shorter."""
        if cache.kept or not self._road.may(len(tokens)):
            return None
        with announced(self._model, cache, torch.tensor([list(tokens)])) as known:
            if not known:
                return None
            width = int(positions[-1]) + 1
            return self._road.logits(tokens, positions, wanted, width, cache, {HELD: cache, **extra})


def takes_back(cache: BoundedCache) -> bool:
    """Whether a pass over several new tokens says of each what single ones would, and may be undone in part.

    Not where a policy chooses, which it does for all rows of a pass together, nor where a layer keeps only what is in
    its window, or states.
    """
    seen = all(held.kept is None and held.window is None for held in cache.context.layers)
    return seen and cache.context.policy.lossless


class BoundedTarget(StockTarget):
    """Decodes behind a context that is attached to ``model``; ``rows`` is chain only for what ``takes_back``."""

    def __init__(self, model: PreTrainedModel, cache: BoundedCache, rows: Kind = "off") -> None:
        super().__init__(model, rows, cache)
        self._unrecorded = torch.inference_mode  # plain generate finds tensors that it can write to all the same
        self._behind, self._held = Behind(model), cache
        self.goes_on = True

    def rollback(self) -> None:
        """Afterwards the cache is as it was before the pending rows, if their pass failed halfway too.

        Where ``rows`` is off it is left as it is.
        """
        if self.rows == "off" or not self._pending:
            return
        self.note(())
        layers: Any = self._held.layers
        for layer in layers:
            layer.crop(self.length - layer.get_seq_length())
        if self.length == self._held.tokens:
            self._held.rewind()
        self._pending, self._before = 0, []

    def _record(self) -> None:
        """Nothing to do: its layers keep all that stands behind the context."""

    def _scored(self, tokens: Sequence[int], positions: Tensor, wanted: int) -> Tensor:
        found = self._behind.shorter(tokens, positions, wanted, self._held)
        if found is not None:
            return found
        told, self._held.is_told = self._held.is_told, True  # whoever decodes here knows all lengths, and says so
        try:
            return super()._scored(tokens, positions, wanted)
        finally:
            self._held.is_told = told
