"""The nouns of a needle task and the one verb: ``draw``.

Owns what a task hands to the job. Knows no haystack and no model: places are shares of the text, and whether a key
already stands in the haystack is the job's business.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from longctx.errors import BadOption

Scoring = Literal["exact", "substring", "share"]
Stands = Literal["together", "alone", "nowhere"]


@dataclass(frozen=True, slots=True)
class Needle:
    """One sentence and its place: the share of the text that stands before it. ``evidence``: the answer needs it."""

    text: str
    place: float
    evidence: bool = True


@dataclass(frozen=True, slots=True)
class Case:
    """One question, all strings its answer should name, and the sentences planted for it.

    ``keys`` must not occur in the haystack, or the question would have a second answer. ``others`` are the strings that
    an exact answer must not name. ``distractors`` are planted for this case alone, whose form no other case need have.
    """

    question: str
    answers: tuple[str, ...]
    needles: tuple[Needle, ...]
    keys: tuple[str, ...]
    others: tuple[str, ...] = ()
    distractors: tuple[tuple[Needle, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """One case per depth. A distractor is all the sentences of one more fact of the same form, which all cases have.

    ``filler`` gives the sentences of a task that brings its own haystack, without an end. ``counted`` reads the answers
    of a task without needles off the text that was made, in place of those of its case; none: they are not certain.
    """

    cases: tuple[Case, ...]
    distractors: tuple[tuple[Needle, ...], ...] = ()
    filler: Callable[[], Iterator[str]] | None = None
    counted: Callable[[str], tuple[str, ...]] | None = None


class Task(Protocol):
    """A kind of needle. ``stands`` says where its answers do: facts of several depths "together" in one text, each
    "alone" in a text of its own, or "nowhere" in particular; of these there is one case.

    ``distractors`` is how many facts of the same form are planted beside a case when the caller names no number;
    None means that the task has none to plant.
    """

    scoring: ClassVar[Scoring]
    stands: ClassVar[Stands]
    distractors: ClassVar[int | None]

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        """Facts for every depth, all different; the same ``rng`` state gives the same facts."""
        ...


def at_least(name: str, value: int, least: int) -> None:
    """Raises BadOption unless the option ``name`` is at least ``least``."""
    if value < least:
        raise BadOption(f"{name}={value} must be at least {least}.")
