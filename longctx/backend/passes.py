"""One forward pass over a batch, by the shorter road where it leads to the same numbers.

Owns the choice between the model's own forward and ``Lean``, and the comparison that allows the second. What runs where
is decided by the model's parts at every pass and by one comparison of numbers; nothing of a pass stays on the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longctx.backend.alone import alone
from longctx.backend.anatomy import Unlike
from longctx.backend.attention import TAP, StopReading, Tap, installed
from longctx.backend.caches import CaptureCache
from longctx.backend.lean import Lean

_ROWS, _TOKENS = 2, 24  # of the comparison
_PARTS = 3  # of the sample, that are tried one after another
_DISTINCT = 8  # tokens of it: where all are alike, attention gives the same whatever it looks at
# Relative distance of keys, values and logits: rounding reaches a third of these, another formula passes them
_CLOSE = {torch.float16: 0.05, torch.bfloat16: 0.12}
# The same in formats in which tokens are promised, of the number that is furthest off: rounding reaches a tenth of it
_EXACT = {torch.float64: 1e-9, torch.float32: 2e-4}

# a memo, not state: what the comparison of the roads found for a model of this stamp; it costs a few short passes
_DIFFERS: WeakKeyDictionary[PreTrainedModel, tuple[tuple[int, bool], str]] = WeakKeyDictionary()


class Passes:
    """Runs passes over ``model``. ``why_not`` is why the last one took the model's own forward; empty: it did not.

    ``sample`` are tokens of text to compare the roads with, which is done once for the weights of a model, and not
    before there are enough: rounding is at its worst in tokens that are no text (docs/log.md). ``undecided``: the last
    pass had too few.
    """

    def __init__(self, model: PreTrainedModel, sample: Sequence[int]) -> None:
        self.model = model
        self._sample = list(sample)
        self.why_not = ""
        self.undecided = False
        self._lean: Lean | None = None
        config = model.config.get_text_config(decoder=True)
        self._layers = int(config.num_hidden_layers)
        self._slides = int(getattr(config, "sliding_window", None) or 0)
        self._trained = int(getattr(config, "max_position_embeddings", None) or 0)

    def run(
        self,
        ids: Tensor,
        cache: Any,
        tap: Tap,
        keep: Sequence[int] = (),
        positions: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor | None:
        """Logits of the tokens ``keep``, [batch, kept, vocab]; None where ``tap`` ended the pass.

        ``ids`` [batch, tokens] stand at ``positions`` behind the slots of ``cache``; ``valid`` says which slots and
        tokens count, [batch, slots + tokens] (None: an empty cache, and rows that end in padding).
        """
        with torch.inference_mode(), alone(self.model):
            lean = self.lean(cache.get_seq_length() + ids.shape[1])
            road = lean.run if lean is not None else self._own
            device = self.model.device
            try:
                return road(
                    ids.to(device),
                    cache,
                    tap,
                    list(keep),
                    None if positions is None else positions.to(device),
                    None if valid is None else valid.to(device),
                )
            except StopReading:
                return None

    def _own(
        self, ids: Tensor, cache: Any, tap: Tap, keep: list[int], positions: Tensor | None, valid: Tensor | None
    ) -> Tensor:
        """The model's own forward with its attention seen by ``tap``."""
        kept = torch.tensor(keep, dtype=torch.long, device=ids.device)
        extra = {"attention_mask": valid, "position_ids": positions, "logits_to_keep": kept, TAP: tap}
        with installed(self.model):
            out = self.model(
                input_ids=ids,
                past_key_values=cache,
                use_cache=True,
                **{k: v for k, v in extra.items() if v is not None},
            )
        logits: Tensor = out.logits
        return logits

    def lean(self, width: int) -> Lean | None:
        """The lean layers for rows of ``width`` slots, or None with the reason in ``why_not``."""
        self.undecided = False
        try:
            if self._lean is None or not self._lean.holds(self.model):
                self._lean = Lean(self.model)
            lean = self._lean
            if 0 < self._slides < max(width, _TOKENS):
                raise Unlike(f"layers see no more than {self._slides} tokens back")
            of, differs = _DIFFERS.get(self.model, (None, ""))
            now = lean.stamp, lean.fused.suits  # what the kernel comes to be for was not compared
            if of != now:
                self.undecided = len(set(self._sample)) < _DISTINCT
                if self.undecided:
                    raise Unlike(f"{len(set(self._sample))} different tokens are too few to compare the roads with")
                differs = self._compared(lean)
                _DIFFERS[self.model] = now, differs
            if differs:
                raise Unlike(differs)
        except Unlike as difference:
            self.why_not = str(difference)
            return None
        self.why_not = ""
        return lean

    def _compared(self, lean: Lean) -> str:
        """What differs between one short pass on every road; empty when nothing does beyond rounding.

        In formats of 16 bits rounding alone may lead far: which token most of a text looks at can hang on it. Another
        formula differs whatever the tokens are, so that others of the sample are shown before a road is called another.
        """
        exact, found = self.model.dtype in _EXACT, ""
        for part in range(1 if exact else _PARTS):
            start = part * len(self._sample) // _PARTS
            found = self._apart(lean, [*self._sample[start:], *self._sample[:start]])
            if not found:
                return ""
        return found

    def _apart(self, lean: Lean, sample: list[int]) -> str:
        """The same for some tokens.

        One row stands at the beginning of a text and one at the end of the longest: some layers scale by the position.
        """
        positions = torch.arange(_TOKENS) + torch.tensor([[0], [max(0, self._trained - _TOKENS)]])
        positions = positions.to(self.model.device)
        repeats = -(-_ROWS * _TOKENS // len(sample))
        ids = torch.tensor((sample * repeats)[: _ROWS * _TOKENS], device=self.model.device).view(_ROWS, _TOKENS)
        fused = functools.partial(lean.run, fused=True)
        roads: list[tuple[Callable[..., Tensor], int]] = [(self._own, _TOKENS), (lean.run, _TOKENS)]
        if lean.fused.fit():  # which multiplies a few rows otherwise than many: the first tokens by themselves too
            roads += [(fused, _TOKENS), (fused, 1)]
        found: list[list[Tensor]] = []
        for road, tokens in roads:
            cache = CaptureCache(self._layers, self.model.dtype)
            tap, keep = Tap({}, slice(0, 0), _ignore), sorted({0, tokens - 1})
            try:
                logits = road(ids[:, :tokens], cache, tap, keep, positions[:, :tokens], None)
            except torch.OutOfMemoryError as error:  # says nothing of the model: not kept
                raise Unlike("there was no memory to compare the roads") from error
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                if road == self._own:
                    raise
                return f"its parts are not used as the known ones are ({type(error).__name__}: {error})"
            kept = [cache.cut(row, tokens, self._layers) for row in range(_ROWS)]
            found.append([logits] + [state for stored in kept for state in (*stored.keys, *stored.values)])
        pairs = [(0, 1), (0, 2), (2, 3)][: len(roads) - 1]  # few rows and many of the kernel round alike
        far = max(self._far(found[one], found[other]) for one, other in pairs)
        if far <= (_EXACT if self.model.dtype in _EXACT else _CLOSE)[self.model.dtype]:
            return ""
        return f"its layers have the known parts but compute something else (relative distance {far:.2g})"

    def _far(self, own: list[Tensor], other: list[Tensor]) -> float:
        """How far numbers of one road are from those of another, which may have the first tokens alone."""
        measure = _furthest if self.model.dtype in _EXACT else _distance
        return max(measure(one[:, : its.shape[1]], its) for one, its in zip(own, other, strict=True))


def _distance(own: Tensor, other: Tensor) -> float:
    """Of ``other`` from ``own``, relative to the length of ``own``; not-a-number counts as infinitely far."""
    own, other = own.cpu().double(), other.cpu().double()  # not every device has numbers of 64 bits
    far = float((own - other).norm() / own.norm().clamp_min(1e-12))
    return far if far == far else float("inf")


def _furthest(own: Tensor, other: Tensor) -> float:
    """The largest difference of two numbers, relative to the size of a usual one; not-a-number is infinitely far."""
    own, other = own.cpu().double(), other.cpu().double()
    far = float((own - other).abs().max() / own.square().mean().sqrt().clamp_min(1e-12))
    return far if far == far else float("inf")


def _ignore(layer: int, weights: Tensor) -> None:
    """A pass that only stores has no rows to hand out."""
