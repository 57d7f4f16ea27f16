"""The committed tokens of a request in one growing array. Knows no drafter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class History:
    """``tokens`` is a view of all tokens so far; appending moves it only when its buffer is full."""

    def __init__(self, tokens: Sequence[int] | NDArray[np.integer]) -> None:
        self._buffer = np.array(tokens, dtype=np.int32)
        self._count = len(self._buffer)

    @property
    def tokens(self) -> NDArray[np.int32]:
        return self._buffer[: self._count]

    def append(self, tokens: Sequence[int]) -> None:
        count = self._count + len(tokens)
        if count > len(self._buffer):
            wider = np.zeros(2 * count, dtype=np.int32)
            wider[: self._count] = self.tokens
            self._buffer = wider
        self._buffer[self._count : count] = tokens
        self._count = count
