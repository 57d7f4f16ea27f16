"""How much to draft, and which of the drafted nodes to verify.

Knows counts, values and seconds; no drafter and no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from longctx.decoding.tree import TokenTree
from longctx.drafts import Budget


class Controller(Protocol):
    """Decides before a round how much may be drafted, and after drafting what is worth a row."""

    def plan(self, depth: int) -> Budget | None:
        """The budget of this round, whose paths may be ``depth`` long; None: do not draft."""
        ...

    def cut(self, tree: TokenTree) -> TokenTree: ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same number of nodes."""

    nodes: int = 16

    def plan(self, depth: int) -> Budget | None:
        return Budget(self.nodes, depth)

    def cut(self, tree: TokenTree) -> TokenTree:
        return tree.best(self.nodes)
