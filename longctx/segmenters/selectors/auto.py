"""The default: a cascade from cheap to dear, whose signals are added up.

Words and embeddings look at every unit. The model reads only the segments that could still enter the budget, and a few
spread evenly over the text to tell it what an unrelated segment scores. Owns the order and the weights; the signals are
those of ``bm25``, ``dense``, ``xl3m`` (question likelihood) and ``infiniretri`` (calibrated attention).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from longctx.errors import ModelError
from longctx.protocols import Corpus
from longctx.segmenters.selectors._attention import fuse, heads_of, per_unit
from longctx.segmenters.selectors._neighbours import spread, standard
from longctx.types import Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Auto:
    """``model=false`` leaves the reading model out. ``reach`` is how many times the budget the model may read, and
    ``least`` how many tokens it may read in any case.

    ``sample`` segments, evenly spaced, are read besides: they say what is usual. ``neighbours`` is the share of each
    neighbour's score added to a unit's own. ``likelihood`` and ``attention`` weigh the model's signals; words and
    embeddings weigh 1 each. ``refuse=false`` never says that nothing is relevant, so that a model that is good at
    saying so itself is asked every time.
    """

    baseline: ClassVar[bool] = False
    model: bool = True
    neighbours: float = 0.5
    reach: float = 3.0
    least: int = 4096
    sample: int = 16
    likelihood: float = 1.0
    attention: float = 0.5
    refuse: bool = True

    def __post_init__(self) -> None:
        if self.reach <= 0 or self.least < 0 or self.sample < 2:
            raise ValueError(
                f"reach={self.reach} must be above 0, least={self.least} at least 0 and sample={self.sample} at least 2"
            )

    def limit(self, budget_tokens: int) -> int:
        """How many tokens of promising segments are read; the one that passes it is read to its end."""
        return max(round(self.reach * budget_tokens), self.least)

    def score(self, question: str, corpus: Corpus, budget_tokens: int) -> Scores:
        """The sum of all signals, each standardised over the text. Signals that cannot be had are named in warnings."""
        before = corpus.spent()
        words = corpus.lexical(question)
        warnings: list[str] = []
        values = standard(words)
        facts: dict[str, Any] = {"signals": ["words"]}
        cosine = None
        if not corpus.why_no_embeddings:
            cosine = corpus.similarity(question)
            values = values + standard(cosine)
            facts["signals"].append("embeddings")
        else:
            warnings.append(f"units are scored without embeddings: {corpus.why_no_embeddings}")
        gain = None
        if self.model:
            try:
                found = self._read(question, corpus, budget_tokens, values)
            except ModelError as error:
                warnings.append(f"the model's own signals are not used: {error}")
            else:
                values, gain = values + found.values, found.gain
                warnings += found.warnings
                facts["signals"] += ["question likelihood", "attention"]
                facts["segments_read"], facts["gain"] = found.read, gain
        nearest = None if cosine is None else float(cosine.max())
        relevant = not self.refuse or _relevant(corpus.coverage(question), nearest, gain)
        spent, fused = corpus.spent() - before, spread(values, corpus.units, self.neighbours)
        return Scores(fused, relevant, spent, tuple(warnings), facts, _FLOOR)

    def _read(self, question: str, corpus: Corpus, budget_tokens: int, values: NDArray[np.float32]) -> _Found:
        """The model's signals for the segments worth a pass, standardised by the evenly spaced ones; 0 for the rest."""
        usual = _spaced(len(corpus.segments), self.sample)
        ranked = spread(values, corpus.units, self.neighbours)
        chosen = self._promising(corpus, ranked, self.limit(budget_tokens))
        asked = sorted({*usual, *chosen})
        if len(asked) == len(corpus.segments):
            usual = asked  # everything is read: everything says what is usual
        heads, warnings = heads_of(corpus)
        inquiry = corpus.probe.inquiry(question, heads=heads, likelihood=True)
        likelihood = np.zeros(len(corpus.segments), dtype=np.float32)
        mass = np.zeros((len(heads), len(corpus.units)), dtype=np.float32)
        for segment, reading in corpus.ask(asked, inquiry):
            first, last = corpus.segments[segment]
            likelihood[segment] = reading.likelihood.mean()
            mass[:, first:last] = per_unit(corpus, segment, reading)
        if not (np.isfinite(likelihood).all() and np.isfinite(mass).all()):
            raise ModelError(
                "its passes over the text gave numbers that are not finite. Load it in another dtype, such as float32."
            )
        # the square root keeps one loud unit from silencing all others
        attended = np.sqrt(fuse(mass))
        likely = np.zeros(len(corpus.units), dtype=np.float32)
        read, typical = np.zeros((2, len(corpus.units)), dtype=bool)
        for segment in asked:
            first, last = corpus.segments[segment]
            likely[first:last], read[first:last] = likelihood[segment], True
        for segment in usual:
            first, last = corpus.segments[segment]
            typical[first:last] = True
        total = self.likelihood * _against(likely, typical) + self.attention * _against(attended, typical)
        null = float(corpus.probe.null(inquiry).likelihood.mean())
        gain = float(likelihood[asked].max() - max(null, float(np.median(likelihood[usual]))))
        return _Found(np.where(read, total, 0.0).astype(np.float32), gain, len(asked), warnings)

    def _promising(self, corpus: Corpus, values: NDArray[np.float32], limit_tokens: int) -> list[int]:
        """Segments in the order of their best unit until their units hold ``limit_tokens``."""
        owner = np.zeros(len(corpus.units), dtype=np.intp)
        for segment, (first, last) in enumerate(corpus.segments):
            owner[first:last] = segment
        chosen: dict[int, None] = {}
        tokens = 0
        for unit in np.argsort(-values, kind="stable"):
            segment = int(owner[unit])
            if segment in chosen:
                continue
            if tokens >= limit_tokens:
                break
            chosen[segment] = None
            first, last = corpus.segments[segment]
            tokens += corpus.units[last - 1].last - corpus.units[first].first
        return list(chosen)


@dataclass(frozen=True, slots=True)
class _Found:
    """What reading gave: a number per unit, the best segment's gain in log-likelihood, and how many were read."""

    values: NDArray[np.float32]
    gain: float
    read: int
    warnings: tuple[str, ...]


def _spaced(count: int, wanted: int) -> list[int]:
    """``wanted`` of ``count`` indices, evenly spaced from first to last; all when there are fewer."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(wanted, count)).round()})


def _against(values: NDArray[np.float32], typical: NDArray[np.bool_]) -> NDArray[np.float32]:
    """``values`` in deviations from the mean of the ``typical`` ones."""
    sample = values[typical]
    deviation = float(sample.std())
    return (values - sample.mean()) / deviation if deviation > 1e-6 else np.zeros_like(values)


def _relevant(coverage: float, cosine: float | None, gain: float | None) -> bool:
    """Whether anything in the text has to do with the question. Any one signal that says yes is believed.

    The limits lie above what unrelated questions reach and below what answerable ones do (docs/log.md). With fewer
    signals the remaining ones are believed sooner.
    """
    words_say = _WORDS if cosine is not None and gain is not None else _WORDS_ALONE
    return coverage >= words_say or (cosine is not None and cosine >= _COSINE) or (gain is not None and gain >= _GAIN)


_FLOOR = 0.2  # of the best span: small models take the words of weaker ones for the answer (docs/log.md)
_WORDS, _WORDS_ALONE = 0.5, 0.2  # share of the question's words, by weight, in one unit
_COSINE = 0.3  # of question and nearest unit
_GAIN = 0.4  # in mean log-likelihood of the question's tokens, best segment against the usual one


PLUGIN = Auto
