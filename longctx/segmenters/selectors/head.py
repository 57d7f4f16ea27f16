"""The first tokens of the text: what plain truncation keeps. A baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longctx.protocols import Corpus
from longctx.types import Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """Earlier units score higher, whatever is asked; the first that does not fit ends the text."""

    baseline: ClassVar[bool] = True

    def score(self, question: str, corpus: Corpus, budget_tokens: int) -> Scores:
        sizes = np.cumsum([unit.tokens for unit in corpus.units])
        values = -np.arange(len(corpus.units), dtype=np.float32)
        values[sizes > budget_tokens] = -np.inf
        return Scores(values)


PLUGIN = Head
