"""The frozen nouns of the library: what crosses the doors between rooms.

Owns data and its invariants. Knows no model, no file and no method.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longctx.errors import BadOption
from longctx.jsonable import jsonable

Guarantee = Literal["exact", "exact-up-to-float", "approximate"]
FinishReason = Literal["stop", "length"]  # ended by itself or as was asked, or cut off by ``max_new_tokens``


@dataclass(frozen=True, slots=True)
class Page:
    """Characters ``[start, end)`` of a document's text stand on page ``number`` (counted from 1)."""

    number: int
    start: int
    end: int
    label: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """A text with exact character offsets, and the pages it came from where the source has pages.

    ``kind`` is ``"text"``, ``"markdown"``, ``"html"``, ``"pdf"``, ``"docx"`` or ``"code"``; ``language`` names the
    programming language of code.
    """

    id: str
    text: str
    pages: tuple[Page, ...] = ()
    kind: str = "text"
    language: str = ""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise BadOption(f"the text of a document is a string, not {type(self.text).__name__}: decode it first.")

    @classmethod
    def from_text(cls, text: str, id: str = "text") -> Document:
        """A document made of a string; offsets of every result count characters of ``text``."""
        return cls(id=id, text=text)

    def page_at(self, offset: int) -> int | None:
        """The number of the page that holds character ``offset``, or None for a source without pages."""
        if not self.pages:
            return None
        at = bisect_right([page.start for page in self.pages], offset) - 1
        return self.pages[max(at, 0)].number


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of characters ``[start, end)`` of one document's text.

    ``context`` is the range of a heading or signature that explains the span (code units carry one); it is shown to
    scorers with the span, and is never part of what the span selects.
    """

    start: int
    end: int
    context: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class EncodedDocument:
    """A document and its tokens: token ``i`` begins at character ``token_starts[i]``.

    ``token_starts`` begins at 0 and ascends, not strictly: one character may be several tokens.
    """

    document: Document
    token_ids: NDArray[np.int32]  # [tokens]
    token_starts: NDArray[np.int64]  # [tokens]

    def token_at(self, offset: int) -> int:
        """The index of the first token that begins at or after character ``offset``."""
        return int(np.searchsorted(self.token_starts, offset, side="left"))

    def count(self, start: int, end: int) -> int:
        """How many tokens begin inside ``[start, end)``."""
        return self.token_at(end) - self.token_at(start)


@dataclass(frozen=True, slots=True)
class Unit:
    """The piece a selector keeps or drops: characters ``[start, end)``, tokens ``[first, last)`` of one document."""

    index: int
    document: int
    start: int
    end: int
    first: int
    last: int
    context: tuple[int, int] | None = None

    @property
    def tokens(self) -> int:
        return self.last - self.first


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What is appended to every segment, and what is wanted of the pass.

    ``ids`` are the tokens after the segment; ``question`` is the range of them that is the question itself; ``rows`` is
    the range whose attention rows are averaged. ``heads`` are the (layer, head) pairs whose rows are wanted; ``None``
    means every head of every layer. ``likelihood`` and ``next_token`` need the full depth of the model. ``keep_rows``
    wants every row by itself as well.
    """

    ids: tuple[int, ...]
    question: tuple[int, int]
    rows: tuple[int, int] = (0, 0)
    heads: tuple[tuple[int, int], ...] | None = ()
    likelihood: bool = False
    next_token: bool = False
    keep_rows: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """What one segment said to an inquiry.

    ``attention``: float32 [heads, tokens], heads in the order asked for: the mean over the rows of the probability
    given to each token of the segment.
    ``likelihood``: natural-log probability of each question token given prefix, segment and the tokens before it.
    ``next_token``: float32 log-probabilities [vocab] of what follows the inquiry.
    ``rows``: float32 [heads, rows, prefix + segment + inquiry tokens], only with ``keep_rows``.
    """

    attention: NDArray[np.float32]  # [heads, tokens]
    likelihood: NDArray[np.float32]  # [question tokens]
    next_token: NDArray[np.float32] | None = None
    rows: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """What a selector found: one value per unit (higher is kept first) and what finding it cost.

    Units at ``-inf`` are never kept. ``relevant`` is False when no unit scored above what an unrelated text scores.
    Spans below ``floor`` times the best score are kept, but not read: for scores whose zero is what is usual.
    """

    values: NDArray[np.float32]  # [units]
    relevant: bool = True
    tokens_read: int = 0
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    floor: float = 0.0


@dataclass(frozen=True, slots=True)
class SelectedSpan:
    """A verbatim piece of a document that was kept: ``document.text[start:end]``."""

    document_id: str
    start: int
    end: int
    page: int | None
    score: float


@dataclass(frozen=True, slots=True)
class Step:
    """One door of the trace: what was done, how long it took, and its counts; ``bytes`` is what memory then holds."""

    name: str
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Selection:
    """The spans kept for one question, in document order, and their text in that order.

    ``order`` are the places of the spans that ``ask`` has the model read, in its order: the strongest last, next to the
    question, and without those below the selector's floor; empty for all of them in the order of the documents, as
    baselines and bounded caches have them.

    ``tokens`` counts the reader's tokens of ``text``, separators included, and never exceeds the budget.
    ``tokens_read`` counts the token-forwards spent on selecting. ``profile`` holds the score of every unit for plots;
    it is left out of ``as_dict``.
    """

    spans: tuple[SelectedSpan, ...]
    text: str
    tokens: int
    dropped_tokens: int
    tokens_read: int
    seconds: float
    selector: str = ""
    relevant: bool = True
    warnings: tuple[str, ...] = ()
    trace: tuple[Step, ...] = ()
    profile: tuple[SelectedSpan, ...] = field(default=(), repr=False)
    order: tuple[int, ...] = ()

    @property
    def as_read(self) -> tuple[SelectedSpan, ...]:
        """The spans that the model reads, in the order in which it reads them; none where it is not asked."""
        if not self.relevant:
            return ()
        return tuple(self.spans[at] for at in self.order) or self.spans

    def as_dict(self) -> dict[str, Any]:
        return jsonable(self, without=("profile",))


@dataclass(frozen=True, slots=True)
class Citation:
    """A verbatim quote that supports the answer: ``document.text[start:end] == quote``."""

    document_id: str
    start: int
    end: int
    page: int | None
    quote: str
    score: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said, what it read to say it, and where in the source that stands."""

    text: str
    citations: tuple[Citation, ...]
    selection: Selection
    usage: Mapping[str, int]
    timings: Mapping[str, float]
    guarantee: Guarantee
    warnings: tuple[str, ...] = ()
    trace: tuple[Step, ...] = ()
    finish_reason: FinishReason = "stop"

    def as_dict(self) -> dict[str, Any]:
        return jsonable(self, without=("profile",))


@dataclass(frozen=True, slots=True)
class Saved:
    """What saving a compiled document did.

    ``segment_kv`` is where the keys and values of segments are: ``none``, ``summary``, ``ram`` or ``disk``.
    ``written_bytes`` of its ``bytes`` are new; the other files are those that were there before. ``tokens_read`` counts
    the token-forwards spent on segments, and ``units_embedded`` the units that were embedded for it.
    """

    path: str
    segment_kv: str
    segment_form: str
    bytes: int
    written_bytes: int
    tokens_read: int
    units_embedded: int

    def as_dict(self) -> dict[str, Any]:
        return jsonable(self)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened while streaming: ``kind`` is ``progress``, ``token`` or ``answer``.

    ``text`` is the stage for progress and the new text for a token; ``done`` and ``total`` count progress.
    """

    kind: Literal["progress", "token", "answer"]
    text: str = ""
    done: int = 0
    total: int = 0
    answer: Answer | None = None
