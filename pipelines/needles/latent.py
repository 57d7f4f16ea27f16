"""Latent needles: question and needle share no word, and only knowledge of the world links them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from longctx.errors import UsageError

from ._nouns import Case, Drawn, Needle, Scoring, Stands
from ._words import Draw

# What a person does or sees every day, and the question it answers.
_LINKS = (
    ("From the bedroom {name} sees the Colosseum.", "Who lives in Rome?"),
    ("From the bedroom {name} sees the Eiffel Tower.", "Who lives in Paris?"),
    ("Every evening {name} walks past the Brandenburg Gate.", "Who lives in Berlin?"),
    ("Every evening {name} walks past Big Ben.", "Who lives in London?"),
    ("The office of {name} looks out on the Kremlin.", "Who works in Moscow?"),
    ("The office of {name} looks out on the Statue of Liberty.", "Who works in New York?"),
    ("The balcony of {name} faces the Acropolis.", "Who lives in Athens?"),
    ("The balcony of {name} faces the Hagia Sophia.", "Who lives in Istanbul?"),
    ("Below the window of {name} lies the Golden Gate Bridge.", "Who lives in San Francisco?"),
    ("Below the window of {name} lies the Forbidden City.", "Who lives in Beijing?"),
    ("Each morning {name} drills and fills teeth.", "Who is a dentist?"),
    ("Each morning {name} bakes rolls and rye loaves.", "Who makes bread?"),
    ("All day long {name} stitches suits and shortens trousers.", "Who is a tailor?"),
    ("All day long {name} steers an aeroplane.", "Who is a pilot?"),
    ("At night {name} studies the moons of Jupiter through a telescope.", "Who is an astronomer?"),
    ("At night {name} puts out burning houses with a hose.", "Who is a firefighter?"),
    ("One sip of milk makes {name} ill.", "Who is lactose intolerant?"),
    ("Neither meat nor eggs nor cheese ever reach the plate of {name}.", "Who is vegan?"),
    ("Last winter {name} counted penguins near the South Pole.", "Who has been to Antarctica?"),
    ("Last winter {name} rode a camel through the Sahara.", "Who has travelled in Africa?"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Latent:
    """Right when the output names the person."""

    scoring: ClassVar[Scoring] = "substring"
    stands: ClassVar[Stands] = "together"
    distractors: ClassVar[int | None] = None

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        if len(depths) > len(_LINKS):
            raise UsageError(f"there are {len(_LINKS)} latent needles and {len(depths)} depths. Lower --depths.")
        draw = Draw(rng)
        cases = []
        for depth, (statement, question) in zip(depths, draw.some(_LINKS, len(depths)), strict=True):
            name = draw.name()
            cases.append(Case(question, (name,), (Needle(statement.format(name=name), depth),), (name,)))
        return Drawn(tuple(cases))


PLUGIN = Latent
