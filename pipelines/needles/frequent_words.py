"""Frequent words: coined words by a law of frequency; the most frequent are wanted. Selection cannot count them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ._nouns import Case, Drawn, Scoring, Stands, at_least
from ._words import Draw, most_frequent

_VOCABULARY = 500
_A_LINE = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class FrequentWords:
    """Scored by the share of the most frequent words that the output names.

    The word of rank r has a share of r^-alpha of all draws (zeta law, as RULER's frequent-words task). Wanted are the
    most frequent words of the text that was made, where chance may put neighbouring ranks in the other order.
    """

    scoring: ClassVar[Scoring] = "share"
    stands: ClassVar[Stands] = "nowhere"
    distractors: ClassVar[int | None] = None

    words: int = 3
    alpha: float = 2.0

    def __post_init__(self) -> None:
        at_least("words", self.words, 1)

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        draw = Draw(rng)
        coined = tuple(draw.coined(3) for _ in range(_VOCABULARY))
        question = f"Which {self.words} words occur most often in the text?"
        seed = rng.getrandbits(64)
        return Drawn(
            (Case(question, coined[: self.words], (), ()),),
            filler=lambda: _filler(coined, self.alpha, seed),
            counted=lambda text: most_frequent(text, self.words),
        )


def _filler(coined: Sequence[str], alpha: float, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    weights = [rank**-alpha for rank in range(1, len(coined) + 1)]
    while True:
        yield f"{' '.join(rng.choices(coined, weights, k=_A_LINE))}."


PLUGIN = FrequentWords
