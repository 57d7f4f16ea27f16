"""The nouns of drafting: what a drafter is given, what it proposes and what it learns from a verified round.

Owns data and its invariants. Knows no model and no method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longctx.suffixes import SuffixIndex

Kind = Literal["tree", "chain", "off"]
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
class Successors:
    """What a model says after each of the first ids of its vocabulary, when it knows nothing else.

    ``tokens`` are the likeliest next ones, the likeliest first, and ``chances`` their probabilities.
    """

    tokens: NDArray[np.int32]  # [ids, ranks]
    chances: NDArray[np.float32]  # [ids, ranks]


class Seen(NamedTuple):
    """Hidden states [1, tokens, dim] by layer, None for one not wanted, and keys and values that layers share."""

    states: tuple[Any, ...]
    shared: Mapping[str, tuple[Any, Any]]  # [1, heads, tokens, dim], by kind of layer


Take = Callable[[], Seen | None]
"""What passes said of the tokens committed since it was last called; None where none were."""


@dataclass(frozen=True, slots=True)
class DraftSource:
    """What a request begins with: the prompt, and a document's tokens where there is more to copy from.

    ``index`` is that of the document, or of the prompt where there is none; requests and drafters share it. ``seed`` is
    the request's: drafters that draw draw by it. ``folds`` has for every id the lowest that is the same word, and
    ``weights`` how much each place of the indexed text counts beside the others, where that is known. ``successors``
    gives what the model is known to say of single tokens, where it can be asked; with True it is asked further first,
    which may take a second. ``watch`` has kept from then on what a pass says with options, ``output_hidden_states`` and
    ``return_shared_kv_states``, and gives what takes it; a drafter asks for it when it begins, before any is said.
    """

    prompt: NDArray[np.int32]  # [tokens]
    vocabulary: int
    document: NDArray[np.int32] | None = None  # [tokens]
    index: SuffixIndex | None = None
    seed: int = 0
    folds: NDArray[np.int32] | None = None  # [ids]
    weights: NDArray[np.float32] | None = None  # [tokens of the index]
    successors: Callable[[bool], Successors] | None = None
    watch: Callable[[Mapping[str, Any]], Take] | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """What one round settled: ``tokens`` were committed, the last of them is the new anchor.

    ``rows`` are the tokens of the pass and ``parents`` their places in it, the anchor first with parent -1.
    ``accepted`` are the rows that were kept, in order, the anchor among them. ``told`` are those and a few others
    after them; ``tops`` and ``chances`` are the likeliest tokens after each of the told rows and their probabilities,
    before any processor. Where no drafter ``needs`` them none are told.
    """

    tokens: tuple[int, ...]
    rows: NDArray[np.int64]  # [rows]
    parents: NDArray[np.int64]  # [rows]
    accepted: tuple[int, ...]
    told: tuple[int, ...] = ()
    tops: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 0), np.int64))  # [told, needs]
    chances: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))  # [told, needs]
