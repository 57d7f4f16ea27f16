"""The nouns of drafting: what a drafter is given, what it proposes and what it learns from a verified round.

Owns data and its invariants. Knows no model and no method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longctx.types import Guarantee

Rows = Literal["tree", "chain", "off"]
"""What a model can verify in one pass: a tree of tokens, a chain of them, or the next token only."""


@dataclass(frozen=True, slots=True)
class Budget:
    """At most ``nodes`` tokens may be proposed, none deeper than ``depth`` tokens after the anchor."""

    nodes: int
    depth: int


@dataclass(frozen=True, slots=True)
class Draw:
    """Node ``node`` was drawn from a law over ``ids`` with ``probabilities``, which a rule of acceptance may use.

    True only if the decision to draw here did not depend on what was drawn. Siblings are listed in draw order, each
    with the law it was drawn from: without replacement, that is the law without the earlier ones.
    """

    node: int
    ids: NDArray[np.int64]  # [support]
    probabilities: NDArray[np.float64]  # [support], sums to 1


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may follow the anchor. ``parents`` are indices of earlier nodes; -1 is the anchor itself.

    ``values`` estimate the probability that a node is reached and accepted; only their order and rough size matter.
    ``origins`` are the offsets in the source document a node was copied from, -1 where there is none.
    """

    tokens: NDArray[np.int64]  # [nodes]
    parents: NDArray[np.int64]  # [nodes]
    values: NDArray[np.float64]  # [nodes]
    draws: tuple[Draw, ...] = ()
    origins: NDArray[np.int64] | None = None  # [nodes]

    @classmethod
    def empty(cls) -> Draft:
        return cls.chain((), ())

    @classmethod
    def chain(cls, tokens: Sequence[int], values: Sequence[float]) -> Draft:
        """One token after another."""
        count = len(tokens)
        return cls(np.asarray(tokens, dtype=np.int64), np.arange(-1, count - 1), np.asarray(values, dtype=np.float64))

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class DraftSource:
    """What a request begins with: the prompt, and a document's tokens where there is more to copy from."""

    prompt: NDArray[np.int32]  # [tokens]
    vocabulary: int
    document: NDArray[np.int32] | None = None  # [tokens]


@dataclass(frozen=True, slots=True)
class Verified:
    """What one round settled: ``tokens`` were committed, the last of them is the new anchor."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of one generation. ``drafted`` and ``accepted`` count tokens; by source, a shared token counts for each.

    ``seconds`` has the phases ``prefill``, ``draft``, ``verify``, ``commit``.
    """

    rounds: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    drafted_by_source: Mapping[str, int] = field(default_factory=dict)
    accepted_by_source: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    rows: Rows = "off"
    reason: str = ""

    @property
    def tokens_per_round(self) -> float:
        return self.tokens / self.rounds if self.rounds else 0.0


@dataclass(frozen=True, slots=True)
class Generation:
    """What ``longctx.generate`` made: ``sequences`` holds prompt and new ids as Hugging Face returns them.

    ``texts`` are the new tokens as text, one a sequence, without special tokens and without the stop string that ended
    them; ``text`` is the first.
    """

    sequences: Any  # torch.Tensor, long [batch, tokens]
    texts: tuple[str, ...]
    stats: Stats
    guarantee: Guarantee
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return self.texts[0]
