"""Texts with planted facts, made from word lists alone: what a model is calibrated on.

Owns the wording. Knows no model and no document: nothing here is taken from any text, and everything follows from the
seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

_FIRST = "Mara Tobin Ilse Renwick Odette Casper Yusuf Linnea Pavel Greta Anselm Priya Dario Hester Kofi Noor".split()
_LAST = "Ashdown Velaskes Brandt Okoro Lindqvist Marchetti Holloway Petrov Sandoval Whitlock Tanaka Ferreira".split()
_PLACE = "Elmsford Dray Cortell Nantley Ostrava Wexcombe Harlow Quillan Bergen Tamsin Locke Veridale".split()
_THING = "ledger violin telescope lantern tapestry compass manuscript kettle barometer ladder globe sextant".split()
_GROUP = (
    "the council|the night shift|the survey team|the choir|the harbour office|the second committee|the archive".split(
        "|"
    )
)
_COLOUR = "crimson|pale green|indigo|ochre|silver grey|dark brown|turquoise|ivory".split("|")
_MONTH = "January March April June July September October December".split()
_TRADE = "glassblower surveyor botanist printer locksmith translator cooper pharmacist".split()
_MATTER = (
    "the drainage works|the new timetable|the budget for repairs|the lighting plan|the school roof|the seed order"
).split("|")

# statement, question. The questions use other words than the statements where a person would.
_FACTS = (
    ("{name} keeps the {thing} in room {number}.", "Where is the {thing} of {name} kept?"),
    ("The access code for the {place} depot is {number}.", "What code opens the depot in {place}?"),
    ("{name} works as a {trade} in {place}.", "What does {name} do for a living?"),
    ("The {place} bridge was repainted {colour} in {month}.", "Which colour did the bridge at {place} get?"),
    ("In {month} {group} paid {number} crowns for the {thing}.", "How much did {group} spend on the {thing}?"),
    ("{name} was born in {place}, near the old mill.", "In which town was {name} born?"),
    ("The meeting about {matter} was moved to {month} {day}.", "When will {matter} be discussed?"),
    ("{name} told {group} that {matter} would cost {number} crowns.", "What did {name} say {matter} would cost?"),
    ("The {colour} {thing} belongs to {name}.", "Who owns the {colour} {thing}?"),
    ("The train from {place} leaves at {hour} every morning.", "At what time does the {place} train depart?"),
    ("{group} decided that {name} should lead {matter}.", "Who was chosen to be in charge of {matter}?"),
    (
        "After the storm {name} found the {thing} behind the station in {place}.",
        "What was discovered near {place} station?",
    ),
)
_FILLER = (
    "It rained for most of the week, and the roads to {place} were slow.",
    "{name} wrote a long letter about the weather and the price of bread.",
    "Nobody at the table remembered who had first suggested the trip.",
    "{group} met again on a {weekday}, but nothing was settled.",
    "There was some talk of {matter}, and then the subject changed.",
    "The windows faced the river, which made the mornings bright and the evenings cold.",
    "A visitor from {place} asked for directions and stayed for tea.",
    "Later that day {name} walked home along the canal and thought about the summer.",
    "The report runs to many pages, most of them tables that few people read.",
    "Two of the older chairs were mended, and the rest were sold.",
    "In {month} the garden was full of visitors who wanted to see the roses.",
    "{name} said very little, which surprised those who knew the family.",
    "The {thing} on the shelf had not been touched for years.",
    "Every other {weekday} a small market is held beside the church.",
    "As a rule the lamps are lit at dusk and put out before midnight.",
    "{name} agreed in part, but asked for more time to look at the figures.",
)
_WEEKDAY = "Monday Tuesday Thursday Friday Saturday".split()


@dataclass(frozen=True, slots=True)
class Trial:
    """A question and the place of the one sentence that answers it: segment and sentence number."""

    question: str
    segment: int
    sentence: int


@dataclass(frozen=True, slots=True)
class Material:
    """Segments, each a list of sentences, and questions about sentences planted in them."""

    segments: tuple[tuple[str, ...], ...]
    trials: tuple[Trial, ...]


def material(seed: int, segments: int, facts: int, fillers: int) -> Material:
    """``segments`` segments of ``facts`` planted facts among ``fillers`` other sentences; every fact has its question.

    Facts of one form stand in several segments with other names, so that finding one needs more than its form.
    """
    rng = random.Random(seed)
    texts, trials = [], []
    for index in range(segments):
        sentences: list[tuple[str, str | None]] = [(_fill(rng.choice(_FILLER), rng), None) for _ in range(fillers)]
        for form in rng.sample(_FACTS, facts):
            words = _words(rng)
            at = rng.randrange(len(sentences) + 1)
            sentences.insert(at, (_sentence(form[0].format(**words)), form[1].format(**words)))
        texts.append(tuple(sentence for sentence, _ in sentences))
        trials += [Trial(question, index, at) for at, (_, question) in enumerate(sentences) if question is not None]
    rng.shuffle(trials)
    return Material(tuple(texts), tuple(trials))


def _fill(form: str, rng: random.Random) -> str:
    return _sentence(form.format(**_words(rng)))


def _words(rng: random.Random) -> dict[str, str]:
    def one(words: Sequence[str]) -> str:
        return words[rng.randrange(len(words))]

    return {
        "name": f"{one(_FIRST)} {one(_LAST)}",
        "place": one(_PLACE),
        "thing": one(_THING),
        "group": one(_GROUP),
        "colour": one(_COLOUR),
        "month": one(_MONTH),
        "trade": one(_TRADE),
        "matter": one(_MATTER),
        "weekday": one(_WEEKDAY),
        "number": str(rng.randrange(100, 9999)),
        "day": str(rng.randrange(1, 29)),
        "hour": f"{rng.randrange(5, 12)}:{rng.randrange(10, 60)}",
    }


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
