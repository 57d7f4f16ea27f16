"""Queries of a model as its layers make them: those of a context's last tokens, and those of a few tokens behind it.

Owns their collection. Estimates are measured on them, so they should be like the queries of the passes to come. Knows
no policy.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longctx.backend.attaching import attached
from longctx.backend.attention import TAP, Seen
from longctx.backend.behind import Behind
from longctx.backend.bounded import BoundedCache
from longctx.backend.forks import Context

STEPS = 16  # tokens that are said behind a context


class Queries:
    """Stands in a Tap's place and keeps the last queries of every layer, and how their scores are made.

    ``likeliest`` is the token that the model would say next.
    """

    def __init__(self, count: int, dtype: torch.dtype) -> None:
        self.count, self.dtype = count, dtype
        self.last: dict[int, Tensor] = {}  # [heads, at most count, dim]
        self.scores: dict[int, tuple[float, float | None]] = {}
        self.likeliest = 0

    def see(self, layer: int, seen: Seen) -> None:
        self.scores[layer] = (seen.scaling, seen.softcap)
        new = seen.query[0, :, -self.count :] if self.count else seen.query[0, :, :0]
        before = self.last.get(layer)
        if before is not None and new.shape[1] < self.count:
            new = torch.cat((before, new), 1)[:, -self.count :]
        self.last[layer] = new.to(self.dtype, copy=True)  # a pass may compute in a wider format


@torch.inference_mode()
def said(model: PreTrainedModel, context: Context, token: int) -> Queries:
    """The queries of ``token`` and of what ``model`` likes to say after it, read behind ``context`` by its own policy.

    STEPS tokens, or as many as the model has positions for.
    """
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 0
    steps = STEPS if context.tokens + STEPS <= most or not most else max(0, most - context.tokens)
    queries, cache, behind = Queries(STEPS, model.dtype), BoundedCache(context), Behind(model)
    with attached(model):
        for at in range(context.tokens, context.tokens + steps):
            logits = behind.shorter([token], torch.tensor([at], device=model.device), 1, cache, **{TAP: queries})
            if logits is None:
                ids = torch.tensor([[token]], device=model.device)
                logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **{TAP: queries}).logits[0]
            token = int(logits[-1].argmax())
    return queries
