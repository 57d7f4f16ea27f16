"""A model as the verifier of drafted tokens: one pass over rows behind a cache, and the rows that are kept of it.

Owns the cache of one generation. ``RowTarget`` verifies trees with this library's attention function and cache;
``StockTarget`` uses what transformers gives: chains where its cache can be cropped, single tokens where not. Knows no
drafter and no rule.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from longctx.backend.alone import alone
from longctx.backend.attention import PACK, ROWS, installed
from longctx.backend.borrowed import held, inferred, size
from longctx.backend.packs import PackCache
from longctx.backend.roads import Road
from longctx.backend.rows import Rows
from longctx.backend.slots import SlotCache
from longctx.backend.states import Watched, selection, shown
from longctx.drafts import Kind
from longctx.errors import CacheError, ModelError


class RowTarget(Watched):
    """Verifies trees. ``reserve``: the tokens that prompt, answer and drafts will take together.

    ``extra`` travels through the model's forward to its layers. Without ``lean`` every pass is the model's own, and
    so is every one that is watched.
    """

    rows: Kind = "tree"

    def __init__(
        self, model: PreTrainedModel, reserve: int, extra: dict[str, Any] | None = None, *, lean: bool = True
    ) -> None:
        super().__init__()
        config = model.config.get_text_config(decoder=True)
        self.vocabulary = int(config.vocab_size)
        self._model, self._pending = model, 0
        self.road = Road(model, lean)
        # prompts read in a wider format are kept in the model's own; everything else is kept as it comes
        self._cache = SlotCache(config, reserve, model.dtype if self.road.wider else None)
        self.extra = extra or {}
        self._fixed = _arguments(model)
        self._fixed["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool)  # keeps the model from making one
        self._fixed |= self.extra

    @property
    def cache(self) -> SlotCache:
        """The keys and values of the committed tokens."""
        return self._cache

    @property
    def cache_bytes(self) -> int:
        """Of its keys and values, the slots in reserve included."""
        return size(self._cache)

    @property
    def products(self) -> Mapping[int, float]:
        """Seconds that the products of a pass took by its rows, once they were tried."""
        return self.road.products

    @property
    def arguments(self) -> dict[str, Any]:
        """What every pass is given beside its rows."""
        return self._fixed

    def expect(self, rows: int) -> None:
        """As many rows are pending from now on, from a pass that is not this target's alone."""
        _nothing_pending(self._pending)
        self._pending = rows

    def score(self, tokens: Sequence[int], parents: Sequence[int], wanted: int) -> Tensor:
        """Logits [wanted, vocab] of the last ``wanted`` rows; the rows are pending until ``commit`` or ``rollback``."""
        _nothing_pending(self._pending)
        rows = Rows(parents, self.length, self._cache.windows, self._model.device)
        self._pending = len(tokens)
        settled = False
        try:
            with torch.inference_mode():
                width, seen, logits = self.length + len(tokens), {ROWS: rows} | self.extra, None
                if not self.watches:
                    logits = self.road.logits(tokens, rows.positions, wanted, width, self._cache, seen, rows.is_chain)
                if logits is None:
                    extra = {**self._fixed, ROWS: rows, "past_key_values": self._cache, **selection(self.watches)}
                    with installed(self._model):
                        out = _pass(self._model, tokens, rows.positions, wanted, extra)
                    logits = _last(out, wanted)
                    shown(self.watches, out, len(tokens))
            settled = True
        finally:
            if not settled:
                self.rollback()
        return logits

    def commit(self, rows: Sequence[int]) -> None:
        """Afterwards the cache holds the pending ``rows``, a path in order, and no others."""
        self.note(rows)  # first: what is shared may lie in the cache's own slots
        with torch.inference_mode():
            self._cache.keep(self.length, rows)
        self.length += len(rows)
        self._pending = 0

    def rollback(self) -> None:
        """Afterwards the cache is as it was before the pending rows."""
        self.commit(())


def score_together(
    model: PreTrainedModel, asked: Sequence[tuple[RowTarget, Sequence[int], Sequence[int], int]]
) -> list[Tensor]:
    """What ``target.score(tokens, parents, wanted)`` says for each of ``asked``, by one pass over the rows of all."""
    rows = [Rows(parents, target.length, target.cache.windows, model.device) for target, _, parents, _ in asked]
    pack = PackCache(rows, [target.cache for target, *_ in asked])
    for target, tokens, *_ in asked:
        target.expect(len(tokens))
    settled, watches = False, [watch for target, *_ in asked for watch in target.watches]
    try:
        first, every = asked[0][0], [token for _, tokens, *_ in asked for token in tokens]
        positions = torch.cat([own.positions for own in rows])
        with torch.inference_mode():
            width, logits = max(target.length + own.count for (target, *_), own in zip(asked, rows, strict=True)), None
            if not watches:
                logits = first.road.logits(every, positions, len(every), width, pack, {PACK: pack} | first.extra)
            if logits is None:
                extra = {**first.arguments, PACK: pack, "past_key_values": pack, **selection(watches)}
                with installed(model):
                    out = _pass(model, every, positions, len(every), extra)
                logits = _last(out, len(every))
                for (target, *_), own, end in zip(asked, rows, accumulate(own.count for own in rows), strict=True):
                    shown(target.watches, out, len(every), end - own.count, own.count)
        settled = True
    finally:
        pack.close()
        if not settled:
            for target, *_ in asked:
                target.rollback()
    found = logits.split_with_sizes([own.count for own in rows])
    return [own[-wanted:] for own, (*_, wanted) in zip(found, asked, strict=True)]


class StockTarget(Watched):
    """Verifies chains, or with ``rows="off"`` single tokens, over a cache of transformers: by default an empty one.

    Where ``rows`` is off nothing can be taken back, so that every pending row must be committed, and a prompt is read
    in one pass, as by ``generate``: some models begin anew in a pass of several tokens, and caches that round do not
    show the pass what they round. Models with a kind of cache of their own make it in their first pass.
    """

    def __init__(self, model: PreTrainedModel, rows: Kind, cache: Any = None) -> None:
        super().__init__()
        self.rows: Kind = rows
        self.goes_on = rows != "off"
        # what is made in inference mode can be written to nowhere else, and the caller's cache is the caller's
        own = cache is None or inferred(cache)
        self._unrecorded: Callable[[], AbstractContextManager[object]] = torch.inference_mode if own else torch.no_grad
        self._before: list[dict[str, Any]] = []  # the pending rows: what of each layer no crop brings back
        self.products: Mapping[int, float] = {}  # it tries none
        config = model.config.get_text_config(decoder=True)
        self.vocabulary = int(config.vocab_size)
        self._model, self._pending = model, 0
        usual = rows != "off" or getattr(model, "_supports_default_dynamic_cache", lambda: True)()
        self._cache: Any = DynamicCache(config=model.config) if cache is None and usual else cache
        self.length = held(cache) if cache is not None else 0
        self._fixed, self._recording = _arguments(model), False
        self._name = _cache_name(model)
        self._fixed[self._name] = self._cache

    @property
    def cache_bytes(self) -> int:
        """Of what its cache holds, a context that it goes on from included."""
        return 0 if self._cache is None else size(self._cache)

    @property
    def croppable(self) -> bool:
        """Whether the cache can take tokens back; known once it holds some."""
        return bool(self._cache.is_croppable)

    def score(self, tokens: Sequence[int], parents: Sequence[int], wanted: int) -> Tensor:
        """Logits [wanted, vocab] of the last ``wanted`` rows, which must be a chain."""
        _nothing_pending(self._pending)
        if list(parents) != list(range(-1, len(tokens) - 1)):
            raise CacheError("this model's cache verifies one token after another, and the rows are a tree.")
        if wanted > 1 and self.rows == "chain" and not self._recording:
            self._record()
        positions = torch.arange(self.length, self.length + len(tokens), device=self._model.device)
        self._before = [_passing(layer) for layer in self._cache.layers] if self.rows != "off" else []
        self._pending = len(tokens)
        settled = False
        try:
            with self._unrecorded(), alone(self._model):
                logits = self._scored(tokens, positions, wanted)
            settled = True
        finally:
            if not settled:
                self.rollback()
        return logits

    def _record(self) -> None:
        """Sliding and convolution layers keep from now on what a crop brings back; not in prefill, for its memory."""
        self._cache.activate_past_recording()
        self._recording = True

    def _scored(self, tokens: Sequence[int], positions: Tensor, wanted: int) -> Tensor:
        out = _pass(self._model, tokens, positions, wanted, self._fixed | selection(self.watches))
        if self._cache is None:
            self._cache = self._fixed[self._name] = getattr(out, self._name)
        shown(self.watches, out, len(tokens))
        return _last(out, wanted)

    def commit(self, rows: Sequence[int]) -> None:
        """Afterwards the cache holds the first of the pending rows, as many as ``rows``."""
        left_out = self._pending - len(rows)
        if left_out and self.rows == "off":
            raise CacheError("this model's cache takes nothing back, and a row was not committed.")
        self.note(rows)
        if self._recording or left_out:
            self._cache.crop(-left_out)
        self.length += len(rows)
        self._pending, self._before = 0, []

    def rollback(self) -> None:
        """Afterwards every layer is as it was before the pending rows, those that a failed pass did not reach included.

        Where ``rows`` is off the cache cannot be used again.
        """
        if self.rows == "off" or not self._pending:
            return
        self.note(())
        for number, layer in enumerate(self._cache.layers):
            if before := self._before[number] if number < len(self._before) else {}:
                vars(layer).update(before)
            elif isinstance(layer, DynamicLayer) and (added := layer.get_seq_length() - self.length) > 0:
                layer.crop(-added)
        self._pending, self._before = 0, []


def _passing(layer: Any) -> dict[str, Any]:
    """What a layer that keeps the last tokens only, or their convolution, holds now; nothing of one that keeps all."""
    if not hasattr(layer, "record_past"):
        return {}
    states = {name: own for name, own in vars(layer).items() if isinstance(own, dict)}
    if not layer.record_past:  # it writes into what it has
        states = {name: {at: _copied(one) for at, one in own.items()} for name, own in states.items()}
    return {**vars(layer), **{name: own.copy() for name, own in states.items()}}


def _copied(state: Any) -> Any:
    return state.clone() if isinstance(state, Tensor) else state


def _last(out: Any, wanted: int) -> Tensor:
    logits: Tensor = out.logits[0, -wanted:]
    return logits


def _pass(model: PreTrainedModel, tokens: Sequence[int], positions: Tensor, wanted: int, extra: dict[str, Any]) -> Any:
    given = {name: v.to(model.device) if isinstance(v, Tensor) else v for name, v in extra.items()}
    if "logits_to_keep" in given:
        given["logits_to_keep"] = wanted
    if "position_ids" in given:
        given["position_ids"] = positions[None]
    return model(input_ids=torch.tensor([list(tokens)], device=model.device), use_cache=True, **given)


def _arguments(model: PreTrainedModel) -> dict[str, Any]:
    """Those of the optional arguments of a pass that this model takes."""
    return dict.fromkeys({"position_ids", "logits_to_keep"} & inspect.signature(model.forward).parameters.keys())


def _cache_name(model: PreTrainedModel) -> str:
    known = inspect.signature(model.forward).parameters
    for name in ("past_key_values", "cache_params"):
        if name in known:
            return name
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in known.values()):
        raise ModelError(
            f"{type(model).__name__} stands around a model and hides what its passes take, as torch.compile does: give "
            "the model itself."
        )
    raise ModelError(f"{type(model).__name__} takes no cache, so that it cannot decode token by token.")


def _nothing_pending(rows: int) -> None:
    if rows:
        raise CacheError(f"{rows} rows of the last pass were neither committed nor rolled back.")
