"""A model as the verifier of drafted tokens: one pass over rows behind a cache, and the rows that are kept of it.

Owns the cache of one generation. ``RowTarget`` verifies trees with this library's attention function and cache;
``StockTarget`` uses what transformers gives: chains where its cache can be cropped, single tokens where not. Knows no
drafter and no rule.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longctx.backend.attention import ROWS, installed
from longctx.backend.rows import Rows
from longctx.backend.slots import SlotCache
from longctx.drafts import Rows as Kind
from longctx.errors import CacheError


class RowTarget:
    """Verifies trees. ``reserve``: the tokens that prompt, answer and drafts will take together."""

    rows: Kind = "tree"

    def __init__(self, model: PreTrainedModel, reserve: int) -> None:
        self._model = model
        config = model.config.get_text_config(decoder=True)
        self.vocabulary = int(config.vocab_size)
        self._cache = SlotCache(config, reserve)
        self._pending = 0
        self.length = 0
        self._none = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=model.device)  # keeps the model from making a mask
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def score(self, tokens: Sequence[int], parents: Sequence[int], wanted: int) -> Tensor:
        """Logits [wanted, vocab] of the last ``wanted`` rows; the rows are pending until ``commit`` or ``rollback``."""
        _nothing_pending(self._pending)
        device = self._model.device
        rows = Rows(parents, self.length, self._cache.windows, device)
        extra: dict[str, Any] = {ROWS: rows, "attention_mask": self._none}
        if self._keeps:
            extra["logits_to_keep"] = wanted
        settled = False
        self._pending = len(tokens)
        try:
            with installed(self._model):
                out = self._model(
                    input_ids=torch.tensor([list(tokens)], device=device),
                    position_ids=rows.positions[None],
                    past_key_values=self._cache,
                    use_cache=True,
                    **extra,
                )
            settled = True
        finally:
            if not settled:
                self.rollback()
        logits: Tensor = out.logits[0, -wanted:]
        return logits

    @torch.inference_mode()
    def commit(self, rows: Sequence[int]) -> None:
        """Afterwards the cache holds the pending ``rows``, a path in order, and no others."""
        self._cache.keep(self.length, rows)
        self.length += len(rows)
        self._pending = 0

    def rollback(self) -> None:
        """Afterwards the cache is as it was before the pending rows."""
        self.commit(())


def _nothing_pending(rows: int) -> None:
    if rows:
        raise CacheError(f"{rows} rows of the last pass were neither committed nor rolled back.")
