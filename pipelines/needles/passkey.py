"""The pass key: a number in a text of the same few sentences over and over."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import ClassVar

from ._nouns import Case, Drawn, Needle, Scoring, Stands
from ._words import Draw

_FILLER = (
    "The hills are low and the wind is mild.",
    "The road goes on, and so do we.",
    "A cart comes by and is gone.",
    "Here is the bridge, there is the tower, and back again.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Passkey:
    """Right when the output holds the number. A text has one pass key."""

    scoring: ClassVar[Scoring] = "substring"
    stands: ClassVar[Stands] = "alone"
    distractors: ClassVar[int | None] = None

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        draw = Draw(rng)
        cases = []
        for depth in depths:
            number = draw.number(5)
            needle = Needle(f"The pass key is {number}. Remember it. {number} is the pass key.", depth)
            cases.append(Case("What is the pass key?", (number,), (needle,), (number,)))
        return Drawn(tuple(cases), filler=_filler)


def _filler() -> Iterator[str]:
    return cycle(_FILLER)


PLUGIN = Passkey
