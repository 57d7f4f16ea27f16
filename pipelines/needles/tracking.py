"""Variable tracking: one variable gets a number, the others get it from one another; all that hold it are wanted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ._nouns import Case, Drawn, Needle, Scoring, Stands, at_least
from ._words import Draw


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """Scored by the share of the variables that the output names.

    The number is assigned at the depth, and every further step follows somewhere behind it. A distractor is a chain of
    as many variables with another number.
    """

    scoring: ClassVar[Scoring] = "share"
    stands: ClassVar[Stands] = "together"
    distractors: ClassVar[int | None] = 0

    hops: int = 4

    def __post_init__(self) -> None:
        at_least("hops", self.hops, 1)

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        draw = Draw(rng)
        cases = []
        for depth in depths:
            number, names, needles = self._chain(draw, depth)
            question = f"Which variables have the value {number}? Name all {self.hops + 1}."
            cases.append(Case(question, names, needles, (number, *names)))
        others = [self._chain(draw, draw.place())[2] for _ in range(distractors)]
        return Drawn(tuple(cases), tuple(others))

    def _chain(self, draw: Draw, depth: float) -> tuple[str, tuple[str, ...], tuple[Needle, ...]]:
        number, names = draw.number(5), tuple(draw.letters(5) for _ in range(self.hops + 1))
        places = [depth, *sorted(draw.place(depth) for _ in names[1:])]
        said = [f"Variable {names[0]} gets the value {number}."]
        said += [f"Variable {b} gets the value of variable {a}." for a, b in zip(names, names[1:], strict=False)]
        return number, names, tuple(map(Needle, said, places))


PLUGIN = Tracking
