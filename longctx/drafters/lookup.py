"""Prompt lookup as Hugging Face has it: what followed the first place where the last few tokens stood before.

A baseline: one chain, the leftmost place wins, and the length of the match does not matter (Saxena 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longctx.drafters._history import History
from longctx.drafts import Budget, Draft, DraftSource, Verified

_KEEPS = 0.8  # how likely a copy is taken to go on, a token further; only the order of nodes follows from it


@dataclass(frozen=True, slots=True)
class Lookup:
    """``tokens`` are copied from the first place of the last ``ngram`` tokens, or of fewer where those are new."""

    tokens: int = 10
    ngram: int = 2
    needs: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.ngram < 1:
            raise ValueError(f"tokens={self.tokens} and ngram={self.ngram} must be at least 1")

    def begin(self, source: DraftSource) -> FirstPlace:
        return FirstPlace(self, source)


class FirstPlace:
    """The drafter at work on one text: the prompt and the answer so far. It never sees a document of its own."""

    def __init__(self, options: Lookup, source: DraftSource) -> None:
        self._options = options
        self._history = History(source.prompt)

    def propose(self, budget: Budget) -> Draft:
        text = self._history.tokens
        for length in range(min(self._options.ngram, len(text) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(text, length)[:-1]
            found = np.flatnonzero((windows == text[-length:]).all(1))
            if len(found):
                start = int(found[0]) + length
                copied = text[start : start + min(self._options.tokens, budget.depth, budget.nodes)]
                return Draft.chain(copied.tolist(), (_KEEPS ** np.arange(1, len(copied) + 1)).tolist())
        return Draft.empty()

    def observe(self, verified: Verified) -> None:
        self._history.append(verified.tokens)


PLUGIN = Lookup
