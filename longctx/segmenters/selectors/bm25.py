"""BM25: the words that a question and a unit share, rare ones counting more. No model pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from longctx.protocols import Corpus
from longctx.segmenters.selectors._neighbours import spread
from longctx.types import Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class BM25:
    """``neighbours`` is the share of each neighbour's score added to a unit's own."""

    baseline: ClassVar[bool] = False
    neighbours: float = 0.0

    def score(self, question: str, corpus: Corpus, budget_tokens: int) -> Scores:
        """BM25 of each unit; not relevant when no word of the question occurs at all."""
        values = corpus.lexical(question)
        return Scores(spread(values, corpus.units, self.neighbours), relevant=bool(values.any()))


PLUGIN = BM25
