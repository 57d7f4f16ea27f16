"""Several threads at once: parcels of several people go from hand to hand, and the last holder of each is wanted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ._nouns import Case, Drawn, Scoring, Stands, at_least
from ._words import Draw
from .thread import chain


@dataclass(frozen=True, kw_only=True, slots=True)
class Threads:
    """Scored by the share of the last holders that the output names. The first thread ends at the depth."""

    scoring: ClassVar[Scoring] = "share"
    stands: ClassVar[Stands] = "together"
    distractors: ClassVar[int | None] = 0

    threads: int = 3
    steps: int = 2
    direction: Literal["forward", "backward"] = "forward"

    def __post_init__(self) -> None:
        at_least("threads", self.threads, 2)
        at_least("steps", self.steps, 1)

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        draw = Draw(rng)
        cases = []
        for depth in depths:
            places = [depth, *(draw.place() for _ in range(self.threads - 1))]
            chains = [chain(draw, self.steps, place, self.direction) for place in places]
            first = [names[0] for names, _ in chains]
            question = (
                f"{', '.join(first[:-1])} and {first[-1]} each had a parcel, and each parcel was handed on "
                f"{self.steps} times. Who has them in the end? Name all {self.threads}."
            )
            needles = tuple(needle for _, own in chains for needle in own)
            keys = tuple(name for names, _ in chains for name in names)
            cases.append(Case(question, tuple(names[-1] for names, _ in chains), needles, keys))
        others = [chain(draw, self.steps, draw.place(), self.direction)[1] for _ in range(distractors)]
        return Drawn(tuple(cases), tuple(others))


PLUGIN = Threads
