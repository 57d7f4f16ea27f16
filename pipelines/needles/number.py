"""One number: the locker of a person, five digits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ._nouns import Case, Drawn, Needle, Scoring, Stands
from ._words import Draw


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """Right when the output holds the number, not as a part of a longer one."""

    scoring: ClassVar[Scoring] = "substring"
    stands: ClassVar[Stands] = "together"
    distractors: ClassVar[int | None] = 0

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        draw = Draw(rng)
        cases = []
        for depth in depths:
            name, number = draw.name(), draw.number(5)
            needle = Needle(_said(name, number), depth)
            cases.append(Case(f"What is the locker number of {name}?", (number,), (needle,), (name, number)))
        others = [(Needle(_said(draw.name(), draw.number(5)), draw.place()),) for _ in range(distractors)]
        return Drawn(tuple(cases), tuple(others))


def _said(name: str, number: str) -> str:
    return f"The locker number of {name} is {number}."


PLUGIN = Number
