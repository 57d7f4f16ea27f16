"""Several keys in one question; the answer of each is wanted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ._nouns import Case, Drawn, Needle, Scoring, Stands, at_least
from ._words import Draw


@dataclass(frozen=True, kw_only=True, slots=True)
class Multiquery:
    """Scored by the share of the numbers that the output holds. The first stands at the depth, the others anywhere."""

    scoring: ClassVar[Scoring] = "share"
    stands: ClassVar[Stands] = "together"
    distractors: ClassVar[int | None] = 0

    keys: int = 4

    def __post_init__(self) -> None:
        at_least("keys", self.keys, 2)

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        draw = Draw(rng)
        cases = []
        for depth in depths:
            names = tuple(draw.name() for _ in range(self.keys))
            numbers = tuple(draw.number(4) for _ in names)
            places = [depth, *(draw.place() for _ in names[1:])]
            needles = tuple(Needle(_said(*said), p) for *said, p in zip(names, numbers, places, strict=True))
            asked = f"{', '.join(names[:-1])} and {names[-1]}"
            question = f"What are the ticket numbers of {asked}?"
            cases.append(Case(question, numbers, needles, (*names, *numbers)))
        others = [(Needle(_said(draw.name(), draw.number(4)), draw.place()),) for _ in range(distractors)]
        return Drawn(tuple(cases), tuple(others))


def _said(name: str, number: str) -> str:
    return f"The ticket number of {name} is {number}."


PLUGIN = Multiquery
