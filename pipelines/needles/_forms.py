"""Facts in many forms of sentence, so that no fact of a text is mistaken for another.

Owns how forms are dealt to facts. Knows no form and no words: both are the task's.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping, Sequence
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
    words: Callable[[Draw], Mapping[str, str]],
    keys: Sequence[str],
) -> Drawn:
    """A fact for every depth, in a form of its own as long as there are so many; distractors take turns at these forms.

    ``words`` draws what may be filled in. Those of ``keys`` that a statement holds must not stand in the haystack.
    """
    draw = Draw(rng)
    dealt = draw.some(forms, len(forms))
    cases = []
    for at, depth in enumerate(depths):
        form, filled = dealt[at % len(dealt)], words(draw)
        held = {name for _, name, _, _ in string.Formatter().parse(form.statement)}
        needle = Needle(form.statement.format(**filled), depth)
        own = tuple(filled[name] for name in keys if name in held)
        cases.append(Case(form.question.format(**filled), (filled[form.wanted],), (needle,), own))
    used = dealt[: len(depths)]
    others = [
        (Needle(used[at % len(used)].statement.format(**words(draw)), draw.place()),) for at in range(distractors)
    ]
    return Drawn(tuple(cases), tuple(others), alike=len(depths) > len(forms))
