"""Many keys: sentences that differ from the right one in nothing but the town and the number."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ._nouns import Case, Drawn, Needle, Scoring, Stands
from ._words import Draw


@dataclass(frozen=True, kw_only=True, slots=True)
class Multikey:
    """Right when the output holds the number of the town that was asked for."""

    scoring: ClassVar[Scoring] = "substring"
    stands: ClassVar[Stands] = "together"
    distractors: ClassVar[int | None] = 15

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        draw = Draw(rng)
        cases = []
        for depth in depths:
            town, number = draw.town(), draw.number(6)
            question = f"Which number opens the vault of {town}?"
            cases.append(Case(question, (number,), (Needle(_said(town, number), depth),), (town, number)))
        others = [(Needle(_said(draw.town(), draw.number(6)), draw.place()),) for _ in range(distractors)]
        return Drawn(tuple(cases), tuple(others))


def _said(town: str, number: str) -> str:
    return f"The number that opens the vault of {town} is {number}."


PLUGIN = Multikey
