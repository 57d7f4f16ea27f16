"""One key with several values, each in a sentence of its own; all are asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ._nouns import Case, Drawn, Needle, Scoring, Stands, at_least
from ._words import Draw


@dataclass(frozen=True, kw_only=True, slots=True)
class Multivalue:
    """Scored by the share of the numbers that the output holds. The first stands at the depth, the others anywhere."""

    scoring: ClassVar[Scoring] = "share"
    stands: ClassVar[Stands] = "together"
    distractors: ClassVar[int | None] = 0

    values: int = 4

    def __post_init__(self) -> None:
        at_least("values", self.values, 2)

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        draw = Draw(rng)
        cases = []
        for depth in depths:
            name, numbers = draw.name(), tuple(draw.number(5) for _ in range(self.values))
            places = [depth, *(draw.place() for _ in numbers[1:])]
            needles = tuple(Needle(_said(name, n), place) for n, place in zip(numbers, places, strict=True))
            question = f"Which numbers were drawn for {name}? Name all {self.values}."
            cases.append(Case(question, numbers, needles, (name, *numbers)))
        others = [(Needle(_said(draw.name(), draw.number(5)), draw.place()),) for _ in range(distractors)]
        return Drawn(tuple(cases), tuple(others))


def _said(name: str, number: str) -> str:
    return f"One of the numbers drawn for {name} is {number}."


PLUGIN = Multivalue
