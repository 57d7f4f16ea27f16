"""Queries of a model as its layers make them: those of a context's last tokens, and of fragments read again behind it.

Owns their collection. Estimates are measured on them, so they should be like the queries of the passes to come. Knows
no policy and no estimate: a new kind of queries is one more function here, and ``compressing.indexed`` measures on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longctx.backend.attaching import attached
from longctx.backend.attention import TAP, Seen
from longctx.backend.behind import Behind
from longctx.backend.bounded import BoundedCache
from longctx.backend.forks import Context

FRAGMENTS, FRAGMENT = 12, 4  # of a context that are read once more behind it, and the tokens of each
BEHIND = FRAGMENTS * FRAGMENT  # tokens that are read behind a context where the model has room for them


class Queries:
    """Stands in a Tap's place and keeps the last queries of every layer, and how their scores are made."""

    def __init__(self, count: int, dtype: torch.dtype) -> None:
        self.count, self.dtype = count, dtype
        self.last: dict[int, Tensor] = {}  # [heads, at most count, dim]
        self.scores: dict[int, tuple[float, float | None]] = {}

    def see(self, layer: int, seen: Seen) -> None:
        self.scores[layer] = (seen.scaling, seen.softcap)
        new = seen.query[0, :, -self.count :] if self.count else seen.query[0, :, :0]
        before = self.last.get(layer)
        if before is not None and new.shape[1] < self.count:
            new = torch.cat((before, new), 1)[:, -self.count :]
        self.last[layer] = new.to(self.dtype, copy=True)  # a pass may compute in a wider format


@torch.inference_mode()
def quoted(model: PreTrainedModel, context: Context, ids: Sequence[int]) -> Queries:
    """The queries of fragments of ``ids``, those of ``context``, read once more behind it by its own policy.

    FRAGMENTS of FRAGMENT tokens each, or as many as the model has positions for, evenly spaced and read in one pass.
    They look for what stands anywhere in the text, as those of a question do; those of the text's end seldom do.
    """
    count = _room(model, context) // FRAGMENT
    last = max(0, len(ids) - FRAGMENT)
    starts = [(2 * number + 1) * last // (2 * count) for number in range(count)]
    again = [token for start in starts for token in ids[start : start + FRAGMENT]]
    queries = Queries(len(again), model.dtype)
    if again:
        cache = BoundedCache(context)
        positions = torch.arange(len(again), device=model.device) + cache.get_seq_length()
        with attached(model):
            if Behind(model).shorter(again, positions, 1, cache, **{TAP: queries}) is None:
                given = torch.tensor([again], device=model.device)
                model(given, past_key_values=cache, use_cache=True, logits_to_keep=1, **{TAP: queries})
    return queries


def _room(model: PreTrainedModel, context: Context) -> int:
    """Of BEHIND tokens behind ``context`` those that the model has positions for."""
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 0
    return min(BEHIND, max(0, most - context.tokens)) if most else BEHIND
