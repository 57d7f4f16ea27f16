"""Copies from the document and from the answer so far, wherever their text went on from where the answer stands.

Every place where the latest tokens stood before votes for what followed there; a place that shares a longer past with
the answer counts for more, and so does one of a span that a selector liked. Where no place shares more than a few
tokens, places count too whose words are the same but for case and white space. Costs no pass of any model and no
training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from longctx.drafters._copying import Place, grow
from longctx.drafters._history import History
from longctx.drafts import Budget, Draft, DraftSource, Verified
from longctx.suffixes import LONGEST, SuffixIndex, fold, recent_matches

_FEW = 3  # shared tokens with which a place needs no help of folded ones
_LESS = 1  # tokens by which a folded match counts as shorter


@dataclass(frozen=True, slots=True)
class Document:
    """``places`` bounds how many earlier places of each text vote in one round."""

    places: int = 48
    needs: ClassVar[int] = 0

    def begin(self, source: DraftSource) -> Copying:
        return Copying(source, self.places)


class Copying:
    """The drafter at work: an index of the document, and the tokens of prompt and answer."""

    def __init__(self, source: DraftSource, places: int) -> None:
        self._places, self._folds, self._weights = places, source.folds, source.weights
        text = source.prompt if source.document is None else source.document
        self._index = SuffixIndex(text) if source.index is None else source.index
        # where the prompt is the document, its end alone is kept again, so that a match may reach across it
        self._history = History(source.prompt[-LONGEST:] if source.document is None else source.prompt)

    def propose(self, budget: Budget) -> Draft:
        recent = self._history.tokens
        in_document = dict(self._index.matches(recent[-LONGEST:].tolist(), self._places))
        in_recent = dict(recent_matches(recent, self._places))
        if self._folds is not None and max((*in_document.values(), *in_recent.values()), default=0) < _FEW:
            same = fold(self._folds, recent)
            _add(in_document, self._index.folded(self._folds).matches(same[-LONGEST:].tolist(), self._places))
            _add(in_recent, recent_matches(same, self._places))
        weights = self._weights
        places = [
            Place(self._index.tokens, at, length, True, 1.0 if weights is None else float(weights[at]))
            for at, length in in_document.items()
        ]
        places += [Place(recent, at, length, False) for at, length in in_recent.items()]
        return grow(places, budget)

    def observe(self, verified: Verified) -> None:
        self._history.append(verified.tokens)


def _add(exact: dict[int, int], folded: list[tuple[int, int]]) -> None:
    """Afterwards every place has its longer match."""
    for at, length in folded:
        exact[at] = max(exact.get(at, 1), length - _LESS)


PLUGIN = Document
