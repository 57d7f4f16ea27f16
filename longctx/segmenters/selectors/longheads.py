"""LongHeads (arXiv 2402.10685) as a first stage: the question against what stands for a text, no segment touched.

Owns the sum over heads. What stands for a chunk of keys, and which heads are asked, is the corpus's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from longctx.protocols import By, Corpus
from longctx.segmenters.selectors._attention import fuse, uncalibrated
from longctx.segmenters.selectors._neighbours import spread
from longctx.types import Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class LongHeads:
    """Every question costs its own tokens only, once the text has been read; it is the weakest of the model's signals.

    A head chooses chunks by the product of a query with their representations (section 3.2); here the rows of the
    question choose, each by softmax over all chunks of the text. ``by="bounds"`` takes what no key of a chunk can pass.
    """

    baseline: ClassVar[bool] = False
    by: By = "representation"
    neighbours: float = 0.0

    def score(self, question: str, corpus: Corpus, budget_tokens: int) -> Scores:
        before = corpus.spent()
        values = spread(fuse(corpus.glance(question, self.by)), corpus.units, self.neighbours)
        return Scores(values, tokens_read=corpus.spent() - before, warnings=uncalibrated(corpus))


PLUGIN = LongHeads
