"""Always the same number of nodes, the likeliest by the drafters' own estimates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longctx.decoding.claims import Refuted
from longctx.decoding.costs import RowCosts
from longctx.decoding.tree import TokenTree
from longctx.drafts import Budget


@dataclass(frozen=True, slots=True)
class Fixed:
    """``nodes`` are verified in every round, as far as they are proposed. Holds no state: it controls by itself."""

    nodes: int = 16

    def __post_init__(self) -> None:
        if self.nodes < 0:
            raise ValueError(f"nodes={self.nodes} must not be negative")

    def begin(self, costs: RowCosts | None = None, refuted: Refuted | None = None) -> Fixed:
        return self

    def untimed(self, context: int) -> Sequence[int]:
        return ()

    def expect(self, products: Mapping[int, float]) -> None: ...

    def plan(self, depth: int, context: int) -> Budget | None:
        return Budget(self.nodes, depth) if self.nodes else None

    def cut(self, tree: TokenTree, seconds: float) -> TokenTree:
        return tree.best(self.nodes)

    def feedback(self, tokens: Sequence[int], rows: int, seconds: float, context: int) -> None: ...


PLUGIN = Fixed
