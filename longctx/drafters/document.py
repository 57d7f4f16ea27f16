"""Copies from the document and from the answer so far, wherever their text went on from where the answer stands.

Every place where the latest tokens stood before votes for what followed there; a place that shares a longer past with
the answer counts for more. Costs no pass of any model and no training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from longctx.drafters._copying import Place, grow
from longctx.drafters._history import History
from longctx.drafts import Budget, Draft, DraftSource, Verified
from longctx.suffixes import LONGEST, SuffixIndex, recent_matches


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
        self._places = places
        text = source.prompt if source.document is None else source.document
        self._index = SuffixIndex(text) if source.index is None else source.index
        # where the prompt is the document, its end alone is kept again, so that a match may reach across it
        self._history = History(source.prompt[-LONGEST:] if source.document is None else source.prompt)

    def propose(self, budget: Budget) -> Draft:
        recent = self._history.tokens
        in_document = self._index.matches(recent[-LONGEST:].tolist(), self._places)
        places = [Place(self._index.tokens, at, length, True) for at, length in in_document]
        places += [Place(recent, at, length, False) for at, length in recent_matches(recent, self._places)]
        return grow(places, budget)

    def observe(self, verified: Verified) -> None:
        self._history.append(verified.tokens)


PLUGIN = Document
