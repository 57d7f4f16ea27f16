"""Two facts: who took a thing, and where that person went afterwards; where is the thing?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ._nouns import Case, Drawn, Needle, Scoring, Stands
from ._words import ROOMS, THINGS, Draw


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """Right when the output names the last room and no other that the person was in.

    The last move stands at the depth, taking the thing somewhere before it, and a move that no longer counts before
    that.
    """

    scoring: ClassVar[Scoring] = "exact"
    stands: ClassVar[Stands] = "together"
    distractors: ClassVar[int | None] = None

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        draw = Draw(rng)
        cases = []
        for depth in depths:
            name, thing = draw.name(), draw.some(THINGS, 1)[0]
            before, after = draw.some(ROOMS, 2)
            taken = draw.place(0.0, depth)
            needles = (
                Needle(f"{name} went to the {before}.", draw.place(0.0, taken), evidence=False),
                Needle(f"{name} picked up the {thing}.", taken),
                Needle(f"{name} moved on to the {after}.", depth),
            )
            question = f"In which room is the {thing} that {name} picked up?"
            cases.append(Case(question, (after,), needles, (name,), (before,)))
        return Drawn(tuple(cases))


PLUGIN = Location
