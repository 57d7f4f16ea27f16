"""Queries of a model as its layers make them: those of a context's last tokens, and those of tokens read behind it.

Owns their collection. Estimates are measured on them, so they should be like the queries of the passes to come. Knows
no policy and no estimate: a new kind of queries is one more function here, and ``compressing.indexed`` measures on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longctx.backend.attaching import attached
from longctx.backend.attention import TAP, Seen
from longctx.backend.behind import Behind
from longctx.backend.bounded import BoundedCache
from longctx.backend.forks import Context

STEPS = 16  # tokens that are said behind a context
FRAGMENTS, FRAGMENT = 12, 4  # of a context that are read once more behind it, and the tokens of each
BEHIND = STEPS + FRAGMENTS * FRAGMENT  # tokens that are read behind a context where the model has room for them


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
    queries = Queries(_room(model, context, STEPS), model.dtype)
    read = _reader(model, context, queries)
    with attached(model):
        for _ in range(queries.count):
            token = read([token])
    return queries


@torch.inference_mode()
def quoted(model: PreTrainedModel, context: Context, ids: Sequence[int]) -> Queries:
    """The queries of fragments of ``ids``, those of ``context``, read once more behind it by its own policy.

    FRAGMENTS of FRAGMENT tokens each, or as many as the model has positions for, evenly spaced and read in one pass.
    They look for what stands anywhere in the text, as those of a question do; those of the text's end seldom do.
    """
    count = _room(model, context, FRAGMENTS * FRAGMENT) // FRAGMENT
    last = max(0, len(ids) - FRAGMENT)
    starts = [(2 * number + 1) * last // (2 * count) for number in range(count)]
    again = [token for start in starts for token in ids[start : start + FRAGMENT]]
    queries = Queries(len(again), model.dtype)
    with attached(model):
        if again:
            _reader(model, context, queries)(again)
    return queries


def _room(model: PreTrainedModel, context: Context, tokens: int) -> int:
    """Of so many tokens behind ``context`` those that the model has positions for."""
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 0
    return min(tokens, max(0, most - context.tokens)) if most else tokens


def _reader(model: PreTrainedModel, context: Context, queries: Queries) -> Callable[[Sequence[int]], int]:
    """Reads tokens behind ``context`` and those it read before, and gives the one that is likeliest to follow."""
    cache, behind = BoundedCache(context), Behind(model)

    def read(tokens: Sequence[int]) -> int:
        at = cache.get_seq_length()
        positions = torch.arange(at, at + len(tokens), device=model.device)
        logits = behind.shorter(tokens, positions, 1, cache, **{TAP: queries})
        if logits is None:
            ids = torch.tensor([list(tokens)], device=model.device)
            logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **{TAP: queries}).logits[0]
        return int(logits[-1].argmax())

    return read
