"""XL3M (Wang et al. 2024, arXiv 2405.17755): each segment is read alone with the question; certainty means relevance.

Owns the signals of that reading. ``entropy`` is the paper's; the others answer its failures: a refusal is certain
too, and so is what the model knows by heart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from longctx.protocols import Corpus
from longctx.segmenters.selectors._neighbours import spread
from longctx.types import Inquiry, Reading, Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class XL3M:
    """Scores segments, of which every unit takes its segment's score; units of one segment rank by position.

    ``entropy``: -H of the next-token law p after [segment + question] (the paper's Z).
    ``gain``: KL(p || p of the question without any segment).
    ``contrast``: KL(p || mean of p over all segments).
    ``question_likelihood``: mean log P(question token | segment), LongLLMLingua's document score.
    """

    baseline: ClassVar[bool] = False
    signal: Literal["entropy", "gain", "contrast", "question_likelihood"] = "question_likelihood"
    neighbours: float = 0.0

    def score(self, question: str, corpus: Corpus, budget_tokens: int) -> Scores:
        before = corpus.spent()
        likely = self.signal == "question_likelihood"
        inquiry = corpus.probe.inquiry(question, likelihood=likely, next_token=not likely)
        everything = range(len(corpus.segments))
        if likely:
            found = {i: float(r.likelihood.mean()) for i, r in corpus.ask(everything, inquiry)}
            values = np.array([found[i] for i in everything], dtype=np.float32)
            null = float(corpus.probe.null(inquiry).likelihood.mean())
            relevant = bool(values.max() > null)
        else:
            values = self._of_laws(corpus, inquiry)
            relevant = True
        units = np.zeros(len(corpus.units), dtype=np.float32)
        for value, (first, last) in zip(values, corpus.segments, strict=True):
            units[first:last] = value
        return Scores(spread(units, corpus.units, self.neighbours), relevant, corpus.spent() - before)

    def _of_laws(self, corpus: Corpus, inquiry: Inquiry) -> NDArray[np.float32]:
        """One number per segment from its next-token law. Only ``contrast`` has to keep the laws, in half precision."""
        values = np.zeros(len(corpus.segments), dtype=np.float32)
        base = _law(corpus.probe.null(inquiry)) if self.signal == "gain" else None
        kept: dict[int, NDArray[np.float16]] = {}
        mean: NDArray[np.float64] | float = 0.0
        for i, reading in corpus.ask(range(len(values)), inquiry):
            law = _law(reading)
            if self.signal == "contrast":
                kept[i] = law.astype(np.float16)
                mean = mean + np.exp(law) / len(values)
            else:
                values[i] = _divergence(law, base)
        for i, half in kept.items():
            values[i] = _divergence(half.astype(np.float64), np.log(np.maximum(mean, 1e-300)))
        return values


def _law(reading: Reading) -> NDArray[np.float64]:
    """The log-probabilities of a reading, finite also where the model forbids a token."""
    assert reading.next_token is not None
    return np.maximum(reading.next_token.astype(np.float64), -60_000)


def _divergence(law: NDArray[np.float64], other: NDArray[np.float64] | None) -> float:
    """KL of ``law`` from ``other``; the negative entropy of ``law`` where there is no other."""
    return float((np.exp(law) * (law if other is None else law - other)).sum())


PLUGIN = XL3M
