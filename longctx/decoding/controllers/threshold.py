"""Every node whose calibrated chance of being reached is above a threshold: SpecDec++'s stop, without its trained head.

Its drafting goes on while the chance that some drafted token is rejected stays below a limit (Huang et al. 2024, arXiv
2405.19715, with 0.7 as that limit's default); here each path of a tree stops by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from longctx.decoding.claims import Acceptance, Refuted
from longctx.decoding.costs import RowCosts
from longctx.decoding.tree import TokenTree
from longctx.drafts import Budget


@dataclass(frozen=True, slots=True)
class Threshold:
    """``least`` is the chance below which a node is left out, ``nodes`` bounds one round."""

    least: float = 0.3
    nodes: int = 48

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1 or self.nodes < 1:
            raise ValueError(f"least={self.least} must lie in [0, 1] and nodes={self.nodes} be at least 1")

    def begin(self, costs: RowCosts | None = None, refuted: Refuted | None = None) -> Sifting:
        return Sifting(self)


class Sifting:
    """The controller at work."""

    def __init__(self, options: Threshold) -> None:
        self._options = options
        self._acceptance = Acceptance()
        self._drafted: TokenTree | None = None

    def untimed(self, context: int) -> Sequence[int]:
        return ()

    def expect(self, products: Mapping[int, float]) -> None: ...

    def plan(self, depth: int, context: int) -> Budget | None:
        self._drafted = None
        return Budget(self._options.nodes, depth)

    def cut(self, tree: TokenTree, seconds: float) -> TokenTree:
        self._drafted = tree
        reached = self._acceptance.reach(tree)
        return reached.proposed().best(min(self._options.nodes, int(np.sum(reached.values >= self._options.least))))

    def feedback(self, tokens: Sequence[int], rows: int, seconds: float, context: int) -> None:
        if self._drafted is not None:
            self._acceptance.learn(self._drafted, tokens)


PLUGIN = Threshold
