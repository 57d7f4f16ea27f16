"""InfiniRetri (Ye et al. 2025, arXiv 2502.12962): the model's own attention from the question is the retriever.

Two modes. The default reads segments independently of each other, in batches, with the heads that calibration found,
and stops at the deepest of them. ``compat="paper"`` is the released scoring (infini-retri 0.0.3): last layer, all
heads, strictly one chunk after the other with a cache of retained sentences; a sentence here is a unit of the splitter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from longctx.protocols import Corpus
from longctx.segmenters.selectors._attention import fuse, heads_of, per_unit
from longctx.segmenters.selectors._neighbours import spread
from longctx.segments import group
from longctx.types import Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class InfiniRetri:
    """``window``, ``topk`` and ``phrase`` are the released defaults and count in the paper mode only."""

    baseline: ClassVar[bool] = False
    compat: Literal["none", "paper"] = "none"
    neighbours: float = 0.0
    window: int = 1024
    topk: int = 300
    phrase: int = 8

    def __post_init__(self) -> None:
        if min(self.window, self.topk, self.phrase) < 1:
            raise ValueError(f"window={self.window}, topk={self.topk} and phrase={self.phrase} must be at least 1")

    def score(self, question: str, corpus: Corpus, budget_tokens: int) -> Scores:
        if self.compat == "paper":
            return self._paper(question, corpus)
        before = corpus.spent()
        heads, warnings = heads_of(corpus)
        inquiry = corpus.probe.inquiry(question, heads=heads)
        mass = np.zeros((len(heads), len(corpus.units)), dtype=np.float32)
        for segment, reading in corpus.ask(range(len(corpus.segments)), inquiry):
            first, last = corpus.segments[segment]
            mass[:, first:last] = per_unit(corpus, segment, reading)
        values = spread(fuse(mass), corpus.units, self.neighbours)
        return Scores(values, tokens_read=corpus.spent() - before, warnings=warnings)

    def _paper(self, question: str, corpus: Corpus) -> Scores:
        """Chunk by chunk: the retained units and the next chunk compete, those with a top-k token are retained."""
        probe = corpus.probe
        last_layer = probe.pairs()[-1][0]
        heads = tuple(pair for pair in probe.pairs() if pair[0] == last_layer)
        inquiry = probe.inquiry(question, heads=heads, through_cue=True, keep_rows=True)
        retained: list[int] = []
        values = np.full(len(corpus.units), -np.inf, dtype=np.float32)
        omega: NDArray[np.float64] | None = None
        spent = 0
        for first, last in group(corpus.units, self.window):
            competing = [*retained, *range(first, last)]
            lengths = [corpus.units[i].tokens for i in competing]
            ids = np.concatenate([corpus.ids(i) for i in competing]).tolist()
            _, stored = next(iter(probe.read([ids])))
            _, reading = next(iter(probe.ask([stored], inquiry)))
            spent += len(ids) + len(inquiry.ids)
            assert reading.rows is not None
            summed = reading.rows.astype(np.float64).sum(0)  # [rows, prefix + context + inquiry]
            rows = summed.shape[0]
            prefix = summed.shape[1] - len(ids) - len(inquiry.ids)
            if omega is None:  # taken on the first chunk and frozen, as released
                omega = summed[:, -rows:].sum(1)
            tokens = paper_scores(summed[:, prefix : prefix + len(ids)], omega, self.phrase)
            top = np.argsort(-tokens, kind="stable")[: self.topk]
            owner = np.repeat(np.arange(len(competing)), lengths)
            kept = set(owner[top].tolist())
            best = np.full(len(competing), -np.inf)
            np.maximum.at(best, owner, tokens)
            for at, unit in enumerate(competing):
                values[unit] = best[at] if at in kept else -np.inf
            retained = [unit for at, unit in enumerate(competing) if at in kept]
        return Scores(values, tokens_read=spent, facts={"retained": len(retained)})


def paper_scores(rows: NDArray[np.float64], omega: NDArray[np.float64], phrase: int) -> NDArray[np.float64]:
    """The released token scores from attention ``rows`` [question rows, context tokens] summed over heads.

    A box sum of ``phrase`` columns, zero padded: j - phrase//2 .. j + (phrase-1)//2, asymmetric for an even width.
    Then the sum over rows weighted by ``omega`` squared: the released code weighs rows twice.
    """
    left, right = phrase // 2, (phrase - 1) // 2
    padded = np.pad(rows, ((0, 0), (left + 1, right)))
    sums = np.cumsum(padded, axis=1)
    smooth = sums[:, phrase:] - sums[:, :-phrase]
    return np.asarray((omega[:, None] ** 2 * smooth).sum(0))


PLUGIN = InfiniRetri
