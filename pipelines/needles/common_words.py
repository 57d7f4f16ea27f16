"""Common words: which words of a long list occur most often? An honest negative for selection: no part holds it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ._nouns import Case, Drawn, Scoring, Stands, at_least
from ._words import Draw, most_frequent

_RARE = 2_000  # different words that are not common; each is listed far less often
_RARE_A_LINE = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class CommonWords:
    """Scored by the share of the common words that the output names. Nothing is planted, so nothing can be kept."""

    scoring: ClassVar[Scoring] = "share"
    stands: ClassVar[Stands] = "nowhere"
    distractors: ClassVar[int | None] = None

    words: int = 10

    def __post_init__(self) -> None:
        at_least("words", self.words, 1)

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        draw = Draw(rng)
        common = tuple(draw.coined(3) for _ in range(self.words))
        rare = [draw.coined(3) for _ in range(_RARE)]
        question = f"Which {self.words} words occur most often in the list?"
        seed = rng.getrandbits(64)
        return Drawn(
            (Case(question, common, (), ()),),
            filler=lambda: _filler(common, rare, seed),
            counted=lambda text: most_frequent(text, self.words),
        )


def _filler(common: Sequence[str], rare: Sequence[str], seed: int) -> Iterator[str]:
    """Lines that hold every common word once and rare words in turn, each line in an order of its own."""
    rng = random.Random(seed)
    at = 0
    while True:
        line = [*common, *(rare[(at + i) % len(rare)] for i in range(_RARE_A_LINE))]
        at += _RARE_A_LINE
        rng.shuffle(line)
        yield f"{', '.join(line)}."


PLUGIN = CommonWords
