"""Reads segments once and asks them any number of questions: attention rows, question likelihood, next-token law.

Owns the forward passes that score. Knows tokens and slots only: which segments to ask, and what the numbers mean, is
the business of the selectors. Every result equals that of one fresh forward over [prefix + segment + question].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from longctx.backend.anatomy import LATENT, READ, keeps_latents, sharing
from longctx.backend.attention import Tap
from longctx.backend.caches import CaptureCache, ReplayCache, Stored
from longctx.backend.footprint import kv_heads
from longctx.backend.passes import Passes
from longctx.backend.summaries import Listening, Summary, joined, summarise, weighed
from longctx.backend.tokens import Tokens
from longctx.errors import ModelError
from longctx.protocols import By
from longctx.types import Inquiry, Reading

READ_TOKENS = 2048  # tokens of one reading batch: large enough for the matrix products, small enough for the caches
_USUAL = 512  # tokens of a segment, of which a batch is full
_ASK_SLOTS = 16_384  # stored slots of one asking batch
_ASK_ROWS = 512  # question rows of one asking batch


class Probe:
    """A model, a shared prefix, and the two passes: ``read`` segments, ``ask`` what was read."""

    def __init__(self, model: PreTrainedModel, tokens: Tokens, fingerprint: str = "") -> None:
        self.model, self.tokens, self.fingerprint = model, tokens, fingerprint
        config = model.config.get_text_config(decoder=True)
        self.layers = int(config.num_hidden_layers)
        self.heads = int(getattr(config, "num_attention_heads", 0) or 0)
        if not self.heads:
            raise ModelError("the model has no attention heads, whose keys segments are read for.")
        self.kv_heads = kv_heads(config)
        kinds, _ = get_layer_types_and_kwargs(config)
        self._sharing = sharing(config)
        other = {kind for number, kind in enumerate(kinds) if number not in self._sharing} - READ
        if other:
            raise ModelError(f"the model has {', '.join(sorted(other))} layers, whose keys cannot be read by segments.")
        self.no_summaries = f"it has {LATENT} layers, whose heads have no keys" if keeps_latents(config) else ""
        self.frame = tokens.frame()
        self.prefix = self.frame.before
        self.passes = Passes(model, self.prefix)
        self._head: Stored | None = None

    @property
    def summarises(self) -> bool:
        """Whether heads have keys of their own, which can stand for a segment; ``no_summaries`` is why not."""
        return not self.no_summaries

    def plain(self, text: str) -> list[int]:
        """Ids of ``text`` alone; special tokens spelled out in it stay spelled out."""
        return self.tokens.plain(text)

    def inquiry(
        self,
        question: str,
        heads: Sequence[tuple[int, int]] | None = (),
        likelihood: bool = False,
        next_token: bool = False,
        through_cue: bool = False,
        keep_rows: bool = False,
    ) -> Inquiry:
        """The question as it will stand in the prompt; ``through_cue`` takes attention rows up to the prompt's end."""
        before = self.frame.middle
        ids = (*before, *self.plain(question))
        stop = len(ids)
        if next_token or through_cue:  # nothing else depends on what follows the question
            ids += self.frame.after
        rows = (len(before), len(ids) if through_cue else stop)
        wanted = None if heads is None else tuple(heads)
        self._check(wanted or ())
        return Inquiry(ids, (len(before), stop), rows, wanted, likelihood, next_token, keep_rows)

    def middle(self) -> tuple[tuple[int, int], ...]:
        """The heads to try without a calibration: retrieval heads of decoder-only models sit about the middle."""
        layer = round(0.55 * (self.layers - 1))
        return tuple((layer, head) for head in range(self.heads))

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Every (layer, head) of the model, in the order in which ``heads=None`` returns them."""
        return tuple((layer, head) for layer in range(self.layers) for head in range(self.heads))

    @torch.inference_mode()
    def read(self, segments: Sequence[Sequence[int]], depth: int | None = None) -> Iterator[tuple[int, Stored]]:
        """Keys and values of each segment behind the shared prefix, as ``(index, stored)`` in any order.

        Runs the first ``depth`` layers (default: all), in batches of like length, and stops there: what comes after the
        last key is not computed. The prefix is read once. Nothing of the pass stays on the model, also when the caller
        stops early.
        """
        depth = self.layers if depth is None else depth
        before = self._shared(depth) if self.prefix else None
        order = sorted(range(len(segments)), key=lambda i: -len(segments[i]))
        offset = len(self.prefix)  # stands before every row's keys: short segments must not bring too many rows
        limit = READ_TOKENS + READ_TOKENS // _USUAL * offset
        for batch in _batches(order, lambda i: len(segments[i]) + offset, limit):
            cache = self._read([segments[i] for i in batch], depth, before)
            for row, i in enumerate(batch):
                yield i, cache.cut(row, len(segments[i]), depth)

    def _read(self, rows: Sequence[Sequence[int]], depth: int, before: Stored | None) -> CaptureCache:
        """The states of ``rows`` behind ``before``, in the cache of the pass."""
        width = max(1, *map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for row, own in enumerate(rows):
            ids[row, : len(own)] = torch.as_tensor(np.asarray(own, dtype=np.int64))
        cache = CaptureCache(self.layers, self.model.dtype, before, self._sharing)
        offset = 0 if before is None else before.tokens
        positions = torch.arange(offset, offset + width)[None].expand(len(rows), -1)
        # padding stands to the right of a causal row, where no token of the row can see it: no mask is needed
        self.passes.run(ids, cache, Tap({}, slice(0, 0), _ignore, stop=depth - 1), (), positions)
        return cache

    @torch.inference_mode()
    def ask(self, stored: Sequence[Stored], inquiry: Inquiry) -> Iterator[tuple[int, Reading]]:
        """The reading of each stored segment for one inquiry, as ``(index, reading)`` in any order."""
        order = sorted(range(len(stored)), key=lambda i: -stored[i].tokens)
        offset, new = len(self.prefix), len(inquiry.ids)
        limit = min(_ASK_SLOTS, max(1, _ASK_ROWS // new) * (max((s.tokens for s in stored), default=0) + offset + new))
        for batch in _batches(order, lambda i: stored[i].tokens + offset + new, limit):
            readings = self._ask_batch([stored[i] for i in batch], inquiry)
            yield from zip(batch, readings, strict=True)

    def null(self, inquiry: Inquiry) -> Reading:
        """The reading of no segment at all: what the model expects of the question by itself."""
        depth = self.depth(inquiry)
        empty = Stored(tuple(_EMPTY for _ in range(depth)), tuple(_EMPTY for _ in range(depth)), len(self.prefix))
        if not self.prefix:
            raise ModelError("the model has no prefix tokens, so there is nothing to ask without a segment.")
        return next(iter(self.ask([empty], inquiry)))[1]

    def summarise(self, stored: Stored, units: Sequence[int], heads: Sequence[tuple[int, int]]) -> Summary:
        """What stands for a segment, whose units hold so many tokens each, where ``heads`` look.

        Raises ModelError where it is not ``summarises``.
        """
        if not self.summarises:
            raise ModelError(f"the model has no keys that could stand for a segment: {self.no_summaries}.")
        return summarise(stored, units, self.looked_at(heads))

    def looked_at(self, heads: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """The (layer, KV head) pairs whose keys ``heads`` look at. Raises ModelError for heads that there are not."""
        self._check(heads)
        return tuple(sorted({(layer, head * self.kv_heads // self.heads) for layer, head in heads}))

    def overview(self, summaries: Sequence[Summary]) -> Summary:
        """The summaries of a text's segments as one, in their order."""
        return joined(summaries)

    @torch.inference_mode()
    def glance(self, summary: Summary, inquiry: Inquiry, behind: int, by: By = "representation") -> NDArray[np.float32]:
        """The largest share of each head's attention that one chunk of a unit would get, [heads, units].

        The question is read alone, by one pass down to the deepest head, ``behind`` tokens further on than it would
        stand without a segment: where it stands behind a segment of that length, for which the keys are rotated.
        """
        heads = self.pairs() if inquiry.heads is None else inquiry.heads
        tap = Listening({layer for layer, _ in heads}, slice(*inquiry.rows))
        offset, new = len(self.prefix), len(inquiry.ids)
        # without a prefix the cache is empty and the question stands by itself
        empty = CaptureCache(self.layers, self.model.dtype)
        cache = ReplayCache([[self._shared(self.depth(inquiry))]]) if offset else empty
        positions = torch.arange(new)[None, :] + offset + behind
        valid = torch.ones(1, offset + new, dtype=torch.bool)
        self.passes.run(torch.tensor([inquiry.ids]), cache, tap, (), positions, valid)
        all_seen(tap.layers, tap.heard)
        if any(own.groups != self.heads // self.kv_heads for own in tap.heard.values()):
            raise ModelError("not all layers of the model have as many heads as its configuration says")
        return weighed(summary, heads, tap.heard, by).cpu().numpy()

    def depth(self, inquiry: Inquiry | None = None) -> int:
        """How many layers of a stored segment ``inquiry`` looks at; without one, all there are."""
        if inquiry is None or inquiry.likelihood or inquiry.next_token or inquiry.heads is None:
            return self.layers
        return max((layer for layer, _ in inquiry.heads), default=0) + 1

    def _check(self, heads: Sequence[tuple[int, int]]) -> None:
        if other := set(heads) - set(self.pairs()):
            raise ModelError(
                f"the model has {self.layers} layers of {self.heads} heads, so it lacks some of the heads asked for: "
                f"{sorted(other)}. They were found for another model."
            )

    def _ask_batch(self, stored: Sequence[Stored], inquiry: Inquiry) -> list[Reading]:
        head = self._shared(min(s.depth for s in stored))
        rows = [[head, s] if s.tokens else [head] for s in stored] if self.prefix else [[s] for s in stored]
        cache = ReplayCache(rows)
        new, width = len(inquiry.ids), cache.width
        ids = torch.tensor([inquiry.ids] * len(rows))
        positions = torch.tensor(cache.lengths)[:, None] + torch.arange(new)
        seen: dict[int, Tensor] = {}  # [batch, heads, slots] of each layer
        single: dict[int, Tensor] = {}  # [batch, heads, rows, slots + new]
        wanted = self._wanted(inquiry)
        depth = self.depth(inquiry)
        full = inquiry.likelihood or inquiry.next_token

        def sink(layer: int, weights: Tensor) -> None:
            seen[layer] = weights.mean(2)[..., :width].to("cpu")
            if inquiry.keep_rows:
                single[layer] = weights.to("cpu")

        tap = Tap(wanted, slice(*inquiry.rows), sink, stop=None if full else depth - 1)
        start, stop = inquiry.question
        keep = list(range(start - 1, stop - 1)) if inquiry.likelihood else []
        if inquiry.likelihood and start < 1:
            raise ValueError("the question must follow at least one token of the inquiry")
        keep += [new - 1] if inquiry.next_token else []
        logits = self.passes.run(ids, cache, tap, keep, positions, cache.valid(new))
        all_seen(wanted, seen)
        targets = torch.tensor(inquiry.ids[start:stop], device=self.model.device)[:, None]
        order = _places(inquiry.heads)
        readings = []
        for b, s in enumerate(stored):
            own = slice(width - s.tokens, width)
            attention, likelihood = np.zeros((0, s.tokens), np.float32), np.zeros(0, np.float32)
            law, kept = None, None
            if seen:
                attention = torch.cat([seen[layer][b, :, own] for layer in sorted(seen)]).numpy()[order]
            if single:
                kept = torch.cat([single[i][b, ..., width - cache.lengths[b] :] for i in sorted(single)]).numpy()[order]
            if full and logits is not None:
                wide = logits[b].float()  # [kept, vocab]
                total = wide.logsumexp(-1)
                if inquiry.likelihood:
                    likelihood = (
                        (wide[: stop - start].gather(1, targets) - total[: stop - start, None])[:, 0].cpu().numpy()
                    )
                if inquiry.next_token:
                    law = (wide[-1] - total[-1]).cpu().numpy()
            readings.append(Reading(attention, likelihood, law, kept))
        return readings

    def _wanted(self, inquiry: Inquiry) -> dict[int, Tensor | None]:
        if inquiry.heads is None:
            return dict.fromkeys(range(self.layers))
        wanted: dict[int, list[int]] = {}
        for layer, head in sorted(inquiry.heads):
            wanted.setdefault(layer, []).append(head)
        return {layer: torch.tensor(heads, device=self.model.device) for layer, heads in wanted.items()}

    def _shared(self, depth: int) -> Stored:
        """Keys and values of the prefix alone."""
        if self._head is None or self._head.depth < depth:
            self._head = self._read([self.prefix], depth, None).cut(0, len(self.prefix), depth)
        return self._head


_EMPTY = torch.zeros(0, 0, 0)


def _ignore(layer: int, weights: Tensor) -> None:
    """A pass that only stores has no rows to hand out."""


def all_seen(wanted: Collection[int], seen: Collection[int]) -> None:
    """Raises ModelError where the attention of some ``wanted`` layers was not seen."""
    if lost := sorted({*wanted} - {*seen}):
        raise ModelError(f"layers {lost} do not attend through the attention interface")


def _places(heads: Sequence[tuple[int, int]] | None) -> Any:
    """Where the rows of ``heads`` stand among rows sorted by layer and head: an index that puts them as asked for."""
    if heads is None:
        return slice(None)
    return np.argsort(sorted(range(len(heads)), key=lambda i: heads[i]))


def _batches(order: Sequence[int], size: Callable[[int], int], limit: int) -> Iterator[list[int]]:
    """Runs of ``order`` (longest first) whose padded size stays within ``limit``; at least one item each."""
    batch: list[int] = []
    width = 0
    for item in order:
        if batch and max(width, size(item)) * (len(batch) + 1) > limit:
            yield batch
            batch, width = [], 0
        batch.append(item)
        width = max(width, size(item))
    if batch:
        yield batch
