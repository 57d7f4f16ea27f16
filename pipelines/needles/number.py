"""One number of five digits: of a locker, a bell, a petition; the question repeats the words of the sentence."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ._forms import Form, facts
from ._nouns import Drawn, Scoring, Stands
from ._words import Draw

_SENTENCES = (
    ("The locker number of {name} is {number}.", "What is the locker number of {name}?"),
    ("The archive of {town} holds {number} maps.", "How many maps does the archive of {town} hold?"),
    ("The library card of {name} bears the number {number}.", "Which number does the library card of {name} bear?"),
    ("The great bell of {town} weighs {number} pounds.", "How many pounds does the great bell of {town} weigh?"),
    ("The lottery ticket that {name} bought says {number}.", "What does the lottery ticket that {name} bought say?"),
    ("The orchard at {town} has {number} trees.", "How many trees does the orchard at {town} have?"),
    (
        "In the marathon {name} has the start number {number}.",
        "Which marathon start number does {name} have?",
    ),
    ("The petition of {town} was signed by {number} people.", "How many people signed the petition of {town}?"),
    ("The code of the burglar alarm of {name} is {number}.", "What is the burglar alarm code of {name}?"),
    ("The postal code of {town} is {number}.", "What is the postal code of {town}?"),
    (
        "The telescope of {name} has the serial number {number}.",
        "Which serial number has the telescope of {name}?",
    ),
    ("The mosaic in {town} is made of {number} tiles.", "How many tiles is the mosaic in {town} made of?"),
    ("The passport of {name} ends in {number}.", "Which digits does the passport of {name} end in?"),
    ("The brewery of {town} fills {number} bottles a day.", "How many bottles does the brewery of {town} fill a day?"),
    ("The invoice for {name} was filed under {number}.", "Under which number was the invoice for {name} filed?"),
    ("The quarry near {town} sold {number} slabs.", "How many slabs did the quarry near {town} sell?"),
    ("The taxi that took {name} home was cab {number}.", "Which cab took {name} home?"),
    ("The stadium of {town} seats {number} spectators.", "How many spectators does the stadium of {town} seat?"),
    ("On the reef {name} counted {number} fish.", "How many fish did {name} count on the reef?"),
    ("The tunnel to {town} cost {number} crowns.", "How many crowns did the tunnel to {town} cost?"),
)
_FORMS = [Form(statement, question, "number") for statement, question in _SENTENCES]


_WORDS: Mapping[str, Callable[[Draw], str]] = {
    "name": Draw.name,
    "town": Draw.town,
    "number": lambda draw: draw.number(5),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """Right when the output holds the number, not as a part of a longer one."""

    scoring: ClassVar[Scoring] = "substring"
    stands: ClassVar[Stands] = "together"
    distractors: ClassVar[int | None] = 0

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        return facts(rng, depths, distractors, _FORMS, _WORDS, ("town", "name", "number"))


PLUGIN = Number
