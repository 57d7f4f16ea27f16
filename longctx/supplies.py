"""The verbs of what a compiled document is supplied with beside the model: sentence vectors, and what files hold of it.

No code: protocols are satisfied by shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longctx.protocols import Progress


class TextEncoder(Protocol):
    """Sentences to vectors of length one."""

    @property
    def fingerprint(self) -> str: ...
    def encode(self, texts: Sequence[str], *, progress: Progress | None = None) -> NDArray[np.float32]: ...


class EncoderSource(Protocol):
    """Gives the encoder for a softmax temperature, or raises the error that says how to have one."""

    @property
    def why_unavailable(self) -> str:
        """Empty where there is an encoder."""
        ...

    def __call__(self, temperature: float) -> TextEncoder: ...


class Stored(Protocol):
    """What a loaded document has at hand in its files."""

    @property
    def exact(self) -> bool:
        """Whether its keys and values are those the model computed, to the bit."""
        ...

    def vectors(self, encoder: str) -> NDArray[np.float32] | None:
        """The embeddings of all units by the encoder of that fingerprint, [units, dim], or None."""
        ...

    def get(self, segment: int) -> Any:
        """What is kept of ``segment``, or None."""
        ...

    def summaries(self, heads: Sequence[tuple[int, int]]) -> Sequence[Any] | None:
        """The summary of every segment where ``heads`` look, or None."""
        ...

    def order(self, text: NDArray[np.int32], longest: int) -> NDArray[np.int32] | None:
        """The suffix array of the ids ``text`` by their first ``longest``, both [tokens], or None."""
        ...

    def share(self, segment: int, key: str, take: Callable[[Path, Any], bool]) -> Any:
        """The file of ``segment``, if it is what ``key`` says and ``take`` could have it; else None."""
        ...

    def take_warnings(self) -> tuple[str, ...]:
        """Warnings that no result has carried yet."""
        ...
