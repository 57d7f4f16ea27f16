"""Conditional needles: of many sentences of one form, those that meet a condition are wanted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ._nouns import Case, Drawn, Needle, Scoring, Stands, at_least
from ._words import Draw


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditional:
    """Right when the output holds the number of every parcel with a red seal and of none with a blue one.

    The first stands at the depth, the others anywhere. As many parcels carry a blue seal.
    """

    scoring: ClassVar[Scoring] = "exact"
    stands: ClassVar[Stands] = "together"
    distractors: ClassVar[int | None] = None

    matches: int = 3

    def __post_init__(self) -> None:
        at_least("matches", self.matches, 1)

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        draw = Draw(rng)
        cases = []
        for depth in depths:
            town = draw.town()
            red, blue = ([draw.number(5) for _ in range(self.matches)] for _ in range(2))
            places = [depth, *(draw.place() for _ in red[1:])]
            needles = [Needle(_said(n, town, "red"), place) for n, place in zip(red, places, strict=True)]
            needles += [Needle(_said(n, town, "blue"), draw.place(), evidence=False) for n in blue]
            question = f"Which parcels for {town} carry a red seal? Name their {self.matches} numbers."
            cases.append(Case(question, tuple(red), tuple(needles), (town, *red, *blue), tuple(blue)))
        return Drawn(tuple(cases))


def _said(number: str, town: str, colour: str) -> str:
    return f"Parcel {number} for {town} carries a {colour} seal."


PLUGIN = Conditional
