"""Sentence embeddings: the cosine of question and unit. No pass of the reading model.

``temperature`` is TempScale's tau (arXiv 2410.24200): every attention softmax of the encoder is divided by it, which
keeps embeddings of long texts apart. ``pieces`` is SEA's max over parts of code (arXiv 2208.11271), without training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from longctx.protocols import Corpus
from longctx.segmenters.selectors._neighbours import spread, standard
from longctx.types import Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Dense:
    """``bm25`` is the weight of BM25 added to the cosine, both standardised; 0 leaves the cosine alone.

    ``pieces`` cuts units of code into pieces of about so many tokens, which are embedded too, and the best cosine
    counts; 0 embeds units as wholes only. ``signature`` is the share of the signature's cosine then, in units with one.
    """

    baseline: ClassVar[bool] = False
    temperature: float = 1.0
    bm25: float = 0.0
    neighbours: float = 0.0
    pieces: int = 0
    signature: float = 0.1

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be above 0")
        if self.pieces < 0 or not 0 <= self.signature <= 1:
            raise ValueError(f"pieces={self.pieces} must be 0 or more and signature={self.signature} from 0 to 1")

    def score(self, question: str, corpus: Corpus, budget_tokens: int) -> Scores:
        """Cosine of each unit with the question. Raises MissingExtra or BadOption where there is none."""
        values = corpus.similarity(question, self.temperature, self.pieces, self.signature)
        if self.bm25:
            values = standard(values) + self.bm25 * standard(corpus.lexical(question))
        return Scores(spread(values, corpus.units, self.neighbours))


PLUGIN = Dense
