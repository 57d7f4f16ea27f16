"""One UUID: what a model cannot guess and has to copy to the last character."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ._nouns import Case, Drawn, Needle, Scoring, Stands
from ._words import Draw


@dataclass(frozen=True, kw_only=True, slots=True)
class Uuid:
    """Right when the output holds the whole UUID."""

    scoring: ClassVar[Scoring] = "substring"
    stands: ClassVar[Stands] = "together"
    distractors: ClassVar[int | None] = 0

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        draw = Draw(rng)
        cases = []
        for depth in depths:
            town, value = draw.town(), draw.uuid()
            question = f"Which identifier does the permit of {town} harbour carry?"
            cases.append(Case(question, (value,), (Needle(_said(town, value), depth),), (town, value)))
        others = [(Needle(_said(draw.town(), draw.uuid()), draw.place()),) for _ in range(distractors)]
        return Drawn(tuple(cases), tuple(others))


def _said(town: str, value: str) -> str:
    return f"The permit of {town} harbour carries the identifier {value}."


PLUGIN = Uuid
