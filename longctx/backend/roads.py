"""The shorter road of passes over a cache: when the lean layers are the faster one, and a pass by them.

Owns the choice by the number of rows. The caller says what the rows see and where their keys go: in the cache, and in
what attention is given. Knows no tree and no policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longctx.backend import quick
from longctx.backend.alone import alone
from longctx.backend.arithmetic import arithmetic
from longctx.backend.narrow import FORMATS, MOST
from longctx.backend.passes import Passes

_NEVER = (False,) * (MOST + 1)  # for every count of few rows
_SAMPLE = 48  # tokens with which the roads are compared


class Road:
    """Passes over ``model`` by its lean layers, as ``Lean`` has them; where not ``lean``, none.

    ``wider``: long pieces of a prompt are read in a wider format than the model's own. ``products`` are what the
    products of a pass took by its rows, once they were tried.
    """

    def __init__(self, model: PreTrainedModel, lean: bool = True) -> None:
        self.wider = lean and arithmetic(model.dtype, model.device) != model.dtype
        self.products: Mapping[int, float] = {}
        self._model = model
        self._passes: Passes | None = None
        # whether the lean layers are the faster road for so many rows; None: to be tried
        tried = lean and model.device.type == "cpu" and model.dtype in FORMATS
        self._few: Sequence[bool] | None = None if tried else _NEVER

    def logits(
        self,
        tokens: Sequence[int],
        positions: Tensor,
        wanted: int,
        width: int,
        cache: Any,
        seen: dict[str, Any],
        long: bool = False,
    ) -> Tensor | None:
        """Logits [wanted, vocab] of ``tokens`` at ``positions`` [tokens] behind ``cache``; attention gets ``seen``.

        No row sees more than ``width`` tokens. ``long``: more than a few rows may go here too, whose states come in the
        format that is the fastest. None where the model is not built of them, or its own road is as fast.
        """
        if not self.may(len(tokens), long):
            return None
        with alone(self._model):
            if self._passes is None or self._passes.undecided:
                self._passes = Passes(self._model, tokens[:_SAMPLE])
            lean = self._passes.lean(width)
            if self._few is None and not self._passes.undecided:
                # tried with the prompt: passes that are timed have no trial in them
                self._few, self.products = (_NEVER, {}) if lean is None else (lean.faster(), lean.products())
                if lean is not None:
                    quick.ready(self._model.dtype, lean.layers[0].head_dim, width)
            if lean is None or not self.may(len(tokens), long):
                return None
            ids = torch.tensor([list(tokens)], device=self._model.device)
            kept = list(range(len(tokens) - wanted, len(tokens)))
            dtype = self._model.dtype if len(tokens) <= MOST else None
            return lean.run(ids, cache, None, kept, positions[None], None, seen, dtype)[0]

    def may(self, rows: int, long: bool = False) -> bool:
        """Whether the lean layers, which round otherwise than the model's own, may be the faster road.

        They are for a long piece of the prompt where the processor is slow in the model's own format, and for a few
        rows where it is slow to multiply so many in the usual way. Until that was tried they may be for any.
        """
        if self._few is None:
            return True
        return self._few[rows] if rows <= MOST else long and self.wider
