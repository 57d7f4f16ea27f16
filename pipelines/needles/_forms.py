"""Facts in many forms of sentence, so that no fact of a text is mistaken for another.

A task has as many forms as facts are commonly planted in one text: twenty. Owns how forms are dealt to facts. Knows no
form and no words: both are the task's.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ._nouns import Case, Drawn, Needle
from ._words import Draw


class Form(NamedTuple):
    """A sentence and its question, with words to fill in, and the name of the word that is asked for."""

    statement: str
    question: str
    wanted: str


def facts(
    rng: random.Random,
    depths: Sequence[float],
    distractors: int,
    forms: Sequence[Form],
    words: Mapping[str, Callable[[Draw], str]],
    keys: Sequence[str],
) -> Drawn:
    """A fact for every depth, in a form of its own as long as there are so many, and for each its distractors.

    ``words`` draws what may be filled in. Those of ``keys`` that a statement holds must not stand in the haystack.
    """
    draw = Draw(rng)
    dealt = draw.some(forms, len(forms))
    cases = []
    for at, depth in enumerate(depths):
        form, filled = dealt[at % len(dealt)], {name: one(draw) for name, one in words.items()}
        own = tuple(filled[name] for name in keys if name in _held(form))
        needle = Needle(form.statement.format(**filled), depth)
        cases.append(Case(form.question.format(**filled), (filled[form.wanted],), (needle,), own))
    for at, case in enumerate(cases):  # after all facts, which are the same whatever stands beside them
        form = dealt[at % len(dealt)]
        others = [{name: words[name](draw) for name in words if name in _held(form)} for _ in range(distractors)]
        beside = tuple((Needle(form.statement.format(**filled), draw.place()),) for filled in others)
        cases[at] = replace(case, distractors=beside)
    return Drawn(tuple(cases))


def _held(form: Form) -> set[str]:
    """The names of the words in a form's statement."""
    return {name for _, name, _, _ in string.Formatter().parse(form.statement) if name}
