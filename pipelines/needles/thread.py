"""Thread following: a parcel goes from hand to hand, forward or backward through the text; who has it in the end?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ._nouns import Case, Drawn, Needle, Scoring, Stands, at_least
from ._words import Draw


@dataclass(frozen=True, kw_only=True, slots=True)
class Thread:
    """Right when the output names the last person and nobody else of the thread.

    The last step stands at the depth; the steps that lead to it stand before it (forward) or behind it (backward).
    """

    scoring: ClassVar[Scoring] = "exact"
    stands: ClassVar[Stands] = "together"
    distractors: ClassVar[int | None] = 0

    steps: int = 3
    direction: Literal["forward", "backward"] = "forward"

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        draw = Draw(rng)
        cases = []
        for depth in depths:
            names, needles = chain(draw, self.steps, depth, self.direction)
            question = (
                f"{names[0]} had a parcel, and it was handed on {self.steps} times. Who has it in the end? Answer with "
                "one name."
            )
            # the question names the first, so an answer may as well
            cases.append(Case(question, names[-1:], needles, names, names[1:-1]))
        others = [chain(draw, self.steps, draw.place(), self.direction)[1] for _ in range(distractors)]
        return Drawn(tuple(cases), tuple(others))


def chain(draw: Draw, steps: int, depth: float, direction: str) -> tuple[tuple[str, ...], tuple[Needle, ...]]:
    """The people of one thread and its sentences, in the order of the text: needles of one place keep theirs."""
    names = tuple(draw.name() for _ in range(steps + 1))
    said = [f"{giver} handed the parcel to {taker}." for giver, taker in zip(names, names[1:], strict=False)]
    if direction == "forward":
        return names, tuple(map(Needle, said, [*sorted(draw.place(0.0, depth) for _ in said[1:]), depth]))
    return names, tuple(map(Needle, reversed(said), [depth, *sorted(draw.place(depth, 1.0) for _ in said[1:])]))


PLUGIN = Thread
