"""One UUID: what a model cannot guess and has to copy to the last character."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ._forms import Form, facts
from ._nouns import Drawn, Scoring, Stands
from ._words import Draw

# what carries it
_BEARERS = (
    "permit of {town} harbour",
    "parcel for {name}",
    "meteorite in the museum of {town}",
    "violin that {name} plays",
    "blueprint of {town} station",
    "pacemaker of {name}",
    "first edition in {town} library",
    "racehorse that {name} owns",
    "weather balloon launched at {town}",
    "insurance policy of {name}",
    "water meter of {town} abbey",
    "suitcase that {name} lost",
    "tractor of {town} farm",
    "court order against {name}",
    "oldest oak in {town}",
    "hospital bed of {name}",
    "elevator in {town} tower",
    "boarding pass of {name}",
    "transformer of {town} power plant",
    "diploma that {name} framed",
)
_FORMS = [
    Form(f"The {bearer} carries the identifier {{value}}.", f"Which identifier does the {bearer} carry?", "value")
    for bearer in _BEARERS
]


_WORDS: Mapping[str, Callable[[Draw], str]] = {"name": Draw.name, "town": Draw.town, "value": Draw.uuid}


@dataclass(frozen=True, kw_only=True, slots=True)
class Uuid:
    """Right when the output holds the whole UUID."""

    scoring: ClassVar[Scoring] = "substring"
    stands: ClassVar[Stands] = "together"
    distractors: ClassVar[int | None] = 0

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        return facts(rng, depths, distractors, _FORMS, _WORDS, ("town", "name", "value"))


PLUGIN = Uuid
