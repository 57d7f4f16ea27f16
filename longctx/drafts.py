"""The nouns of drafting: what a drafter is given, what it proposes and what it learns from a verified round.

Owns data and its invariants. Knows no model and no method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from longctx.suffixes import SuffixIndex
from longctx.types import Guarantee

Kind = Literal["tree", "chain", "off"]
"""What a model can verify in one pass: a tree of tokens, a chain of them, or the next token only."""
Number = TypeVar("Number", int, float)


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


@dataclass(frozen=True, slots=True)
class Copy:
    """``tokens`` of an answer, from its token ``new`` on, are a copy of characters ``[start, end)`` of a document.

    A character of several tokens is copied with the last of them.
    """

    document_id: str
    start: int
    end: int
    new: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document in what answers copy from: its tokens begin with number ``first`` of that.

    ``bounds`` are the characters of the document where each of its tokens begins, and where the last ends.
    """

    document_id: str
    first: int
    bounds: NDArray[np.int64]  # [tokens + 1]


@dataclass(frozen=True, slots=True)
class Round:
    """One round: the tokens it committed, and those ``drafted`` for its pass and ``accepted``, by source.

    A token of two sources counts for each. ``seconds`` has the phases ``draft`` and ``verify``; for the round that ends
    the prompt the pass is that of its last piece.
    """

    tokens: int
    drafted: Mapping[str, int]
    accepted: Mapping[str, int]
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of one generation. ``drafted`` and ``accepted`` count tokens; by source, a shared token counts for each.

    ``rounds`` are the passes that gave tokens: the pieces of a long prompt before the last are not counted, nor are
    passes made for their time or to ask what follows which token, which are part of ``draft``. In a batch every prompt
    counts its own, and ``passes`` each pass of the model once, however many prompts it was for. ``seconds`` has the
    phases ``setup`` (making drafters), ``prefill``, ``draft``, ``verify``, ``commit``. ``copied`` are the runs of new
    tokens that were accepted as copies of the document (the prompt, where there was none): the first new token, the
    first token of the document, and how many; ``copies`` says where in a document's text that is, where one was given.
    ``each_round`` has the counts of every round of a single prompt, in order. ``cache_bytes`` are those of the keys,
    values and states that the generation holds at its end, slots in reserve included. ``guarantee`` is what drafting
    leaves as it was; None where nobody has said.
    """

    rounds: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    drafted_by_source: Mapping[str, int] = field(default_factory=dict)
    accepted_by_source: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    rows: Kind = "off"
    copied: tuple[tuple[int, int, int], ...] = ()
    copies: tuple[Copy, ...] = ()
    each_round: tuple[Round, ...] = ()
    passes: int = 0
    cache_bytes: int = 0
    guarantee: Guarantee | None = None

    @property
    def tokens_per_round(self) -> float:
        return self.tokens / self.rounds if self.rounds else 0.0

    def facts(self) -> dict[str, Any]:
        """The counts as they stand in a trace."""
        seconds = {f"{phase}_seconds": value for phase, value in self.seconds.items()}
        return {
            "new_tokens": self.tokens,
            "rounds": self.rounds,
            "passes": self.passes,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "accepted_by_source": self.accepted_by_source,
            "verified": self.rows,
            "bytes": self.cache_bytes,
            **seconds,
        }

    def __add__(self, other: Stats) -> Stats:
        """The counts of two sequences together."""
        return Stats(
            self.rounds + other.rounds,
            self.tokens + other.tokens,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
            _sum(self.drafted_by_source, other.drafted_by_source),
            _sum(self.accepted_by_source, other.accepted_by_source),
            _sum(self.seconds, other.seconds),
            other.rows,
            # where several sequences were made, none can be told apart
            other.copied if not self.tokens else (),
            other.copies if not self.tokens else (),
            other.each_round if not self.tokens else (),
            self.passes + other.passes,
            self.cache_bytes + other.cache_bytes,
        )


def _sum(one: Mapping[str, Number], other: Mapping[str, Number]) -> dict[str, Number]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


@dataclass(frozen=True, slots=True)
class Generation:
    """What ``longctx.generate`` made: ``sequences`` holds prompt and new ids as Hugging Face returns them.

    ``texts`` are the new tokens as text, one a sequence, without special tokens and without the stop string that ended
    them; ``text`` is the first.
    """

    sequences: Any  # torch.Tensor, long [batch, tokens]
    texts: tuple[str, ...]
    stats: Stats
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return self.texts[0]

    @property
    def guarantee(self) -> Guarantee:
        """What drafting left as it was: the counts' own word, and no promise where they have none."""
        return self.stats.guarantee or "approximate"

    def as_dict(self) -> dict[str, Any]:
        """In JSON's own types."""
        stats = self.stats.facts() | {"tokens_per_round": self.stats.tokens_per_round}
        each_round = [asdict(one) for one in self.stats.each_round]
        return {
            "text": self.text,
            "texts": list(self.texts),
            "sequences": self.sequences.tolist(),
            "stats": stats | {"drafted_by_source": dict(self.stats.drafted_by_source), "each_round": each_round},
            "copied": [list(run) for run in self.stats.copied],
            "copies": [asdict(copy) for copy in self.stats.copies],
            "guarantee": self.guarantee,
            "warnings": list(self.warnings),
        }


def located(runs: Iterable[tuple[int, int, int]], passages: Sequence[Passage]) -> tuple[Copy, ...]:
    """What of ``runs`` (first token of the answer, place it was copied from, how many tokens) stands in ``passages``.

    A run over two of them is two copies; tokens inside one character are none.
    """
    found = []
    for new, place, count in runs:
        for passage in passages:
            offset = place - passage.first
            a, b = max(offset, 0), min(offset + count, len(passage.bounds) - 1)
            if a < b and passage.bounds[a] < passage.bounds[b]:
                start, end = int(passage.bounds[a]), int(passage.bounds[b])
                found.append(Copy(passage.document_id, start, end, new + a - offset, b - a))
    return tuple(found)
