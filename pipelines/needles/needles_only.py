"""A haystack of needles: every sentence has the form of the one that is asked for."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ._nouns import Case, Drawn, Needle, Scoring, Stands
from ._words import Draw


@dataclass(frozen=True, kw_only=True, slots=True)
class NeedlesOnly:
    """Right when the output holds the lot of the crate that was asked for."""

    scoring: ClassVar[Scoring] = "substring"
    stands: ClassVar[Stands] = "together"
    distractors: ClassVar[int | None] = None

    def draw(self, rng: random.Random, depths: Sequence[float], distractors: int) -> Drawn:
        draw = Draw(rng)
        cases = []
        for depth in depths:
            crate, lot = draw.crate(), draw.number(7)
            question = f"Which lot does the crate {crate} hold?"
            cases.append(Case(question, (lot,), (Needle(_said(crate, lot), depth),), (crate, lot)))
        state = rng.getstate()
        return Drawn(tuple(cases), filler=lambda: _filler(state, [case.keys for case in cases]))


def _filler(state: tuple[object, ...], taken: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Sentences of other crates and lots, from where the drawing of the cases ended."""
    rng = random.Random()
    rng.setstate(state)
    draw = Draw(rng, used=[key for keys in taken for key in keys])
    while True:
        yield _said(draw.crate(), draw.number(7))


def _said(crate: str, lot: str) -> str:
    return f"The crate {crate} holds lot {lot}."


PLUGIN = NeedlesOnly
