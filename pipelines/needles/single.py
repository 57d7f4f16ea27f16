"""One fact in words: a sentence that names who, what or which colour, and a question that repeats its words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ._nouns import Case, Drawn, Needle, Scoring, Stands
from ._words import COLOURS, THINGS, Draw

# statement, question, the word that is asked for
_FORMS = (
    ("The founder of the observatory in {town} was {name}.", "Who founded the observatory in {town}?", "name"),
    ("The cup of the {town} regatta went to {name}.", "Who received the cup of the {town} regatta?", "name"),
    ("The town hall of {town} was painted {colour}.", "Which colour was the town hall of {town} painted?", "colour"),
    ("What {name} collects is the {thing}.", "What does {name} collect?", "thing"),
    ("The museum of {town} is famous for its {thing}.", "What is the museum of {town} famous for?", "thing"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Single:
    """Right when the output holds the answer."""

    scoring: ClassVar[Scoring] = "substring"
    stands: ClassVar[Stands] = "together"
    distractors: ClassVar[int | None] = 0

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        draw = Draw(rng)
        cases = []
        for number, depth in enumerate(depths):
            statement, question, wanted = _FORMS[number % len(_FORMS)]
            words = _words(draw)
            needle = Needle(statement.format(**words), depth)
            key = words["town"] if "{town}" in statement else words["name"]
            cases.append(Case(question.format(**words), (words[wanted],), (needle,), (key,)))
        others = [
            (Needle(_FORMS[number % len(_FORMS)][0].format(**_words(draw)), draw.place()),)
            for number in range(distractors)
        ]
        return Drawn(tuple(cases), tuple(others))


def _words(draw: Draw) -> dict[str, str]:
    return {
        "name": draw.name(),
        "town": draw.town(),
        "colour": draw.some(COLOURS, 1)[0],
        "thing": draw.some(THINGS, 1)[0],
    }


PLUGIN = Single
