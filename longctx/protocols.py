"""The verbs: what splitters, selectors, KV policies, drafters and what is handed to them can be asked. No code.

Knows the nouns of ``types``, ``drafts`` and ``keys`` only. Protocols are satisfied by shape; nothing here is inherited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from longctx.drafts import Budget, Draft, DraftSource, Kind, Take, Verified
from longctx.keys import Asked, Choice, Index, LayerKeys
from longctx.types import EncodedDocument, Inquiry, Reading, Scores, Span, Unit

Progress = Callable[[str, int, int], None]
"""Called with the stage, how much is done and how much there is; raising from it stops the work."""


By = Literal["representation", "bounds"]
"""What stands for a chunk of keys: one that represents them, or what none of their scores can pass."""


class Splitter(Protocol):
    """Cuts a document into units. Frozen: all options are fields."""

    def split(self, encoded: EncodedDocument) -> Sequence[Span]:
        """Non-empty spans in order that tile the text exactly; each at most the splitter's hard cap of tokens."""

    def warnings(self, encoded: EncodedDocument) -> tuple[str, ...]:
        """What was done differently from what was asked, for the user."""


class Inquirer(Protocol):
    """A model that reads segments and answers inquiries about them with numbers, never with text."""

    @property
    def fingerprint(self) -> str: ...
    def plain(self, text: str) -> list[int]:
        """Ids of ``text`` alone; special tokens spelled out in it stay spelled out."""

    def inquiry(
        self,
        question: str,
        heads: Sequence[tuple[int, int]] | None = (),
        likelihood: bool = False,
        next_token: bool = False,
        through_cue: bool = False,
        keep_rows: bool = False,
    ) -> Inquiry:
        """The question in the prompt's own frame; ``through_cue`` takes attention rows up to the end of the prompt."""

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Every (layer, head), in the order in which ``heads=None`` returns them."""

    def depth(self, inquiry: Inquiry | None = None) -> int:
        """How many layers of a stored segment ``inquiry`` looks at; without one, all there are."""

    def read(self, segments: Sequence[Sequence[int]], depth: int | None = None) -> Iterator[tuple[int, Any]]:
        """Each segment's keys and values behind the shared prefix, as (index, stored), in any order."""

    def ask(self, stored: Sequence[Any], inquiry: Inquiry) -> Iterator[tuple[int, Reading]]:
        """The reading of each stored segment, as (index, reading), in any order."""

    def null(self, inquiry: Inquiry) -> Reading:
        """The reading of no segment at all."""

    def middle(self) -> tuple[tuple[int, int], ...]:
        """The heads to try without a calibration."""

    @property
    def summarises(self) -> bool:
        """Whether heads have keys that can stand for a segment."""

    def summarise(self, stored: Any, units: Sequence[int], heads: Sequence[tuple[int, int]]) -> Any:
        """What stands for a stored segment, whose units hold so many tokens each, where ``heads`` look."""

    def overview(self, summaries: Sequence[Any]) -> Any:
        """The summaries of a text's segments as one, in their order."""

    def glance(self, summary: Any, inquiry: Inquiry, behind: int, by: By = "representation") -> NDArray[np.float32]:
        """The largest share of each head's attention that one chunk of a unit would get, [heads, units], where the
        question is read alone, ``behind`` so many tokens of a segment."""


class Calibrated(Protocol):
    """The heads that find facts in one model, best first."""

    @property
    def heads(self) -> tuple[tuple[int, int], ...]: ...
    @property
    def glancing(self) -> tuple[tuple[int, int], ...]:
        """Those that find them in summaries of segments, with a question that has seen none of them."""


class Corpus(Protocol):
    """A compiled document as a selector sees it. Work done for one question is kept for the next."""

    @property
    def units(self) -> Sequence[Unit]: ...
    @property
    def segments(self) -> Sequence[tuple[int, int]]:
        """The runs of units that are read together, as half-open ranges of unit indices."""

    @property
    def probe(self) -> Inquirer:
        """The model as a reader of segments. Raises ModelError where its layers cannot be read so."""

    @property
    def calibration(self) -> Calibrated | None:
        """The model's retrieval heads, found now if they were not before; None where calibration is switched off."""

    @property
    def why_no_embeddings(self) -> str:
        """Why ``similarity`` has no encoder and raises BadOption or MissingExtra; empty where it has one."""

    def text(self, unit: int) -> str:
        """The unit's own text."""

    def ids(self, unit: int) -> NDArray[np.int32]:
        """The unit's own tokens."""

    def lexical(self, question: str) -> NDArray[np.float32]:
        """BM25 of every unit, [units]; zero where no word is shared."""

    def coverage(self, question: str) -> float:
        """The largest share of the question's words, by inverse document frequency, that one unit holds."""

    def similarity(
        self, question: str, temperature: float = 1.0, piece_tokens: int = 0, signature: float = 0.0
    ) -> NDArray[np.float32]:
        """Cosine of the question's and every unit's embedding, [units]. Raises MissingExtra without an encoder.

        With ``piece_tokens`` a unit of code has the best cosine of its text and of its pieces of about so many tokens;
        where it has a signature, that one's cosine makes up the share ``signature`` of the score.
        """

    def ask(self, segments: Sequence[int], inquiry: Inquiry) -> Iterator[tuple[int, Reading]]:
        """The reading of each of ``segments`` as (segment, reading); segments not yet read are read first."""

    def glance(self, question: str, by: By = "representation") -> NDArray[np.float32]:
        """What heads would look at, held against summaries of the segments, which are made first where there are none:
        a share of each unit, [heads, units]. With all of them a question costs its own tokens."""

    def spent(self) -> int:
        """Token-forwards spent through ``ask`` and ``glance`` so far."""


class Selector(Protocol):
    """Scores units for a question; the cut to the budget is made elsewhere. Frozen: all options are fields."""

    @property
    def baseline(self) -> bool:
        """Whether it exists to be compared with: it chooses even where the whole text would fit."""

    def score(self, question: str, corpus: Corpus, budget_tokens: int) -> Scores: ...


class Target(Protocol):
    """A model and the cache of one request: verifies rows of tokens, and keeps those that were accepted."""

    @property
    def rows(self) -> Kind:
        """What one pass can verify; a row must be a tree node's only where this is ``tree``."""

    @property
    def goes_on(self) -> bool:
        """Whether a prompt may be read in pieces: of some models a pass of several tokens begins anew."""

    @property
    def vocabulary(self) -> int: ...
    @property
    def length(self) -> int:
        """Tokens in the cache."""

    @property
    def cache_bytes(self) -> int: ...
    @property
    def products(self) -> Mapping[int, float]:
        """Seconds that those of a pass take by its rows, where its first pass tried them; empty: unknown."""

    def turn(self) -> AbstractContextManager[None]:
        """Inside, no other thread makes a pass: the time of one is taken here, without what it waited for others."""

    def score(self, tokens: Sequence[int], parents: Sequence[int], wanted: int) -> Any:
        """Logits [wanted, vocab] of the last ``wanted`` rows of one pass, pending until ``commit`` or ``rollback``.

        Each sees the cache and its path: ``parents`` are indices of earlier rows, -1 right behind the cache.
        """

    @property
    def watched(self) -> bool:
        """Whether more than logits is kept of a pass, which not every road says."""

    def watch(self, options: Mapping[str, Any]) -> Take:
        """Keeps from now on, for committed tokens, what a pass says with ``options``.

        Those are ``output_hidden_states`` and ``return_shared_kv_states``. Raises BadOption for others, and where the
        cache holds tokens already.
        """

    def commit(self, rows: Sequence[int]) -> None:
        """Afterwards the cache holds the pending ``rows``, a path in order, and no others."""

    def rollback(self) -> None:
        """Afterwards the cache is as it was before the pending rows."""


class Drafting(Protocol):
    """A drafter at work on one request. Moves only when it observes committed tokens."""

    def propose(self, budget: Budget) -> Draft:
        """What may follow the committed tokens; the same until the next ``observe``."""

    def observe(self, verified: Verified) -> None:
        """Learns what was committed."""


class Drafter(Protocol):
    """A method that proposes tokens. Frozen: all options are fields; what it learns lives in its Drafting."""

    @property
    def needs(self) -> int:
        """How many of the likeliest tokens after every verified row it wants to be told."""

    def begin(self, source: DraftSource) -> Drafting: ...


class KVPolicy(Protocol):
    """A method that says which keys of a fixed context are read, pass by pass and for every KV head by itself.

    Frozen: all options are fields. What it learns of a context lives in an Index, which is data and can be stored.
    """

    @property
    def lossless(self) -> bool:
        """Whether every key is read, so that nothing but rounding sets the output apart from full attention."""

    @property
    def grows(self) -> bool:
        """Whether the context itself is read through the policy, piece by piece, and not with full attention."""

    @property
    def window(self) -> int:
        """How many of the context's last queries it wants to see."""

    def slots(self, tokens: int) -> int:
        """The most slots that a KV head reads of a context of ``tokens``; all of them where there is a ``shortfall``.

        Raises BadOption for an impossible budget."""

    def shortfall(self, tokens: int) -> str:
        """Why the share that was asked for leaves no choice in so short a context, in words; empty where it does."""

    def reach(self, tokens: int, behind: int = 0) -> int:
        """How far before the last token read a key may seem to stand, at most: what ``tokens`` take of a window; the
        last ``behind`` of them are no part of the context."""

    def index(self, layer: LayerKeys, budget: int, before: Index | None = None) -> Index:
        """The index of a layer; ``before`` is that of its beginning, where a context grows."""

    def settle(self, indices: Sequence[Index]) -> list[Index]:
        """The indices of all layers once each is made, for what holds for all of them together."""

    def choose(self, index: Index, asked: Asked) -> Choice:
        """What this pass reads; each row of the batch chooses for itself."""

    def index_bytes(self, tokens: int, heads: int, kv_heads: int, dim: int, itemsize: int) -> int:
        """Bytes of one layer's index beside its keys and values; negative where fewer of those are kept."""
