"""What a generation came to: its tokens, how many rounds they took, why it ended, and what of it was copied.

Owns the counts and how they are written down. Knows no model and no drafter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from longctx.drafts import Kind
from longctx.jsonable import jsonable
from longctx.types import FinishReason, Guarantee

Number = TypeVar("Number", int, float)


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
    leaves as it was; None where nobody has said. ``finish_reasons`` say of every prompt why its answer ended: ``stop``
    by a criterion, as a token that ends answers or a stop string, ``length`` by the limit; none for one that goes on.
    ``lengths`` are the new tokens of each.
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
    finish_reasons: tuple[FinishReason, ...] = ()
    lengths: tuple[int, ...] = ()

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

    def as_dict(self) -> dict[str, Any]:
        """All counts by their names, in JSON's own types."""
        return jsonable(self) | {"tokens_per_round": self.tokens_per_round}

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
            finish_reasons=self.finish_reasons + other.finish_reasons,
            lengths=self.lengths + other.lengths,
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

    @property
    def finish_reasons(self) -> tuple[FinishReason, ...]:
        """Why each of ``texts`` ended: ``length`` where ``max_new_tokens`` cut it off."""
        return self.stats.finish_reasons

    def as_dict(self) -> dict[str, Any]:
        """In JSON's own types."""
        return {
            "text": self.text,
            "texts": list(self.texts),
            "sequences": self.sequences.tolist(),
            "stats": self.stats.as_dict(),
            "guarantee": self.guarantee,
            "finish_reasons": list(self.finish_reasons),
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
