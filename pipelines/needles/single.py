"""One fact in words: a sentence that names who, what, where or which colour, and a question that repeats its words."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ._forms import Form, facts
from ._nouns import Drawn, Scoring, Stands
from ._words import ANIMALS, COLOURS, ROOMS, THINGS, Draw

_FORMS = (
    Form("The founder of the observatory in {town} was {name}.", "Who founded the observatory in {town}?", "name"),
    Form(
        "The town hall of {town} was painted {colour}.", "Which colour was the town hall of {town} painted?", "colour"
    ),
    Form("What {name} collects is the {thing}.", "What does {name} collect?", "thing"),
    Form("The animal on the flag of {town} is the {animal}.", "Which animal is on the flag of {town}?", "animal"),
    Form(
        "For want of a desk {name} wrote the novel in the {room}.", "In which room did {name} write the novel?", "room"
    ),
    Form("The cup of the {town} regatta went to {name}.", "Who received the cup of the {town} regatta?", "name"),
    Form(
        "The carriages of the night train to {town} are {colour}.",
        "Which colour is the night train to {town}?",
        "colour",
    ),
    Form("The museum of {town} is famous for its {thing}.", "What is the museum of {town} famous for?", "thing"),
    Form("On the voyage {name} was bitten by the {animal}.", "Which animal bit {name} on the voyage?", "animal"),
    Form("The ghost of {town} castle haunts the {room}.", "Which room does the ghost of {town} castle haunt?", "room"),
    Form(
        "The last keeper of the lighthouse near {town} was {name}.",
        "Who was the last lighthouse keeper near {town}?",
        "name",
    ),
    Form(
        "The choir of {town} sings in {colour} robes.", "Which colour are the robes of the choir of {town}?", "colour"
    ),
    Form("From a great-aunt {name} inherited the {thing}.", "What did {name} inherit from a great-aunt?", "thing"),
    Form(
        "The inn at the ferry of {town} is named after the {animal}.",
        "Which animal is the inn of {town} named after?",
        "animal",
    ),
    Form("As a child {name} was once locked in the {room}.", "In which room was {name} locked as a child?", "room"),
    Form("The wooden bridge at {town} was designed by {name}.", "Who designed the wooden bridge at {town}?", "name"),
    Form(
        "The doors of the fire station in {town} are {colour}.",
        "Which colour are the fire station doors in {town}?",
        "colour",
    ),
    Form(
        "The thief at the vicarage of {town} took the {thing}.",
        "What did the thief take at the vicarage of {town}?",
        "thing",
    ),
    Form("The chess champion of {town} is {name}.", "Who is the chess champion of {town}?", "name"),
    Form("The bicycle that {name} rides to work is {colour}.", "Which colour is the bicycle of {name}?", "colour"),
)


_WORDS: Mapping[str, Callable[[Draw], str]] = {
    "name": Draw.name,
    "town": Draw.town,
    "colour": lambda draw: draw.some(COLOURS, 1)[0],
    "thing": lambda draw: draw.some(THINGS, 1)[0],
    "animal": lambda draw: draw.some(ANIMALS, 1)[0],
    "room": lambda draw: draw.some(ROOMS, 1)[0],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Single:
    """Right when the output holds the answer."""

    scoring: ClassVar[Scoring] = "substring"
    stands: ClassVar[Stands] = "together"
    distractors: ClassVar[int | None] = 0

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        return facts(rng, depths, distractors, _FORMS, _WORDS, ("town", "name"))


PLUGIN = Single
