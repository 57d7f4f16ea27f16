"""What the loop asks of a controller. Knows no drafter and no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from longctx.decoding.claims import Refuted
from longctx.decoding.costs import RowCosts
from longctx.decoding.tree import TokenTree
from longctx.drafts import Budget


class Control(Protocol):
    """A controller at work on one request."""

    def untimed(self, context: int) -> Sequence[int]:
        """Counts of rows that it would have timed behind ``context`` tokens before it plans at all.

        Where passes for that are made, ``feedback`` is told of each as of a round that committed nothing.
        """
        ...

    def expect(self, products: Mapping[int, float]) -> None:
        """The products of a pass take so many seconds by its rows; told once, before any feedback, as far as known."""
        ...

    def plan(self, depth: int, context: int) -> Budget | None:
        """How much may be drafted in the next round, behind ``context`` tokens, whose paths may be ``depth`` long;
        None: nothing."""
        ...

    def cut(self, tree: TokenTree, seconds: float) -> TokenTree:
        """The part of what was drafted, in ``seconds``, that is worth its rows."""
        ...

    def feedback(self, tokens: Sequence[int], rows: int, seconds: float, context: int) -> None:
        """What a round of ``rows`` behind ``context`` tokens committed, and how long its pass took."""
        ...


class Controller(Protocol):
    """A method of deciding. Frozen: all options are fields."""

    def begin(self, costs: RowCosts | None = None, refuted: Refuted | None = None) -> Control:
        """``costs`` are those of passes of the model, for all of its requests; None: this one's are like no other's.

        ``refuted`` is what its requests found of the same drafters' claims, for controllers that go by these, which add
        what they find; None: nothing is known, and nothing handed on.
        """
        ...
