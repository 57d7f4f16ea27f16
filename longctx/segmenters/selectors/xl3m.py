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
from longctx.types import Scores


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
            laws = {i: _law(r.next_token) for i, r in corpus.ask(everything, inquiry)}
            base = _law(corpus.probe.null(inquiry).next_token) if self.signal == "gain" else None
            values = _values(self.signal, np.stack([laws[i] for i in everything]), base)
            relevant = True
        units = np.zeros(len(corpus.units), dtype=np.float32)
        for value, (first, last) in zip(values, corpus.segments, strict=True):
            units[first:last] = value
        return Scores(spread(units, corpus.units, self.neighbours), relevant, corpus.spent() - before)


def _law(law: NDArray[np.float32] | None) -> NDArray[np.float16]:
    """Log-probabilities in half the space; a segment's law is kept until all segments are read."""
    assert law is not None
    return np.clip(law, -60_000, 0).astype(np.float16)


def _values(signal: str, laws: NDArray[np.float16], base: NDArray[np.float16] | None) -> NDArray[np.float32]:
    """One number per law of ``laws`` [segments, vocab], in float64 a row at a time."""
    mean = np.zeros(laws.shape[1])
    if signal == "contrast":
        for law in laws:
            mean += np.exp(law.astype(np.float64)) / len(laws)
    out = np.zeros(len(laws), dtype=np.float32)
    for i, law in enumerate(laws):
        wide = law.astype(np.float64)
        p = np.exp(wide)
        if signal == "entropy":
            out[i] = float((p * wide).sum())
        else:
            other = np.log(np.maximum(mean, 1e-300)) if base is None else base.astype(np.float64)
            out[i] = float((p * (wide - other)).sum())
    return out


PLUGIN = XL3M
