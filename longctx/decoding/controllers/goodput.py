"""As many nodes as give the most tokens a second, by calibrated acceptance and measured costs; none where none pays.

Nodes are taken by falling chance of being reached while (1 + their sum) / seconds of the pass grows (Liu et al. 2024,
arXiv 2406.14066, whose k this is for chains; with a cost that grows evenly, the threshold of Huang et al. 2024, arXiv
2405.19715). What drafting took counts as well: where drafts do not pay for it too none is verified, and after some such
rounds it stops asking for them, for longer each time. Drafts whose claims an earlier request
found to come next to never true count for little until one does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from longctx.decoding.claims import Acceptance, Refuted
from longctx.decoding.costs import RowCosts
from longctx.decoding.tree import TokenTree
from longctx.drafts import Budget

_LEAST = 8  # nodes asked for at least, so that a change for the better is seen
_PATIENCE = 8  # rounds in a row in which nothing paid
_LONGEST = 24  # rounds without drafts, at most: a passage that is copied ends, and to look one up takes next to nothing
_TIMED = (1, 16)  # rows whose cost is worth a pass of its own, where one is made


@dataclass(frozen=True, slots=True)
class Goodput:
    """``nodes`` bounds one round."""

    nodes: int = 48

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ValueError(f"nodes={self.nodes} must be at least 1")

    def begin(self, costs: RowCosts | None = None, refuted: Refuted | None = None) -> Weighing:
        return Weighing(self.nodes, RowCosts(alone=False) if costs is None else costs, refuted)


class Weighing:
    """The controller at work."""

    def __init__(self, nodes: int, costs: RowCosts, refuted: Refuted | None) -> None:
        self._nodes = nodes
        self._acceptance, self._costs = Acceptance(refuted), costs
        self._timed, self._context = False, 0  # whether this request made a plain pass; the tokens before its rows
        self._drafted: TokenTree | None = None  # what the latest round proposed, before the cut
        self._asked = min(nodes, 2 * _LEAST)
        self._idle = self._pause = self._paused = 0

    def untimed(self, context: int) -> Sequence[int]:
        return () if self._costs.known else _TIMED

    def expect(self, products: Mapping[int, float]) -> None:
        self._costs.expect(products)

    def plan(self, depth: int, context: int) -> Budget | None:
        self._drafted, self._context = None, context
        if not self._timed:
            return None  # what a plain pass costs is what all others are held against
        if self._paused < self._pause:
            self._paused += 1
            return None
        return Budget(self._asked, depth)

    def cut(self, tree: TokenTree, seconds: float) -> TokenTree:
        self._drafted = tree
        reached = self._acceptance.reach(tree)
        reach = -np.sort(-reached.values)[: self._nodes]
        # their time is spent, but costs of rows are too uncertain to verify what wins less than it took to make
        count = self._costs.best(reach, self._context, seconds)
        self._asked = min(self._nodes, max(_LEAST, 2 * count))
        self._idle = 0 if count else self._idle + 1
        if self._idle >= _PATIENCE:
            # the next try comes later each time: what trying costs stays a small share of what it could win
            self._pause, self._paused, self._idle = min(_LONGEST, max(1, 2 * self._pause)), 0, _PATIENCE - 1
        elif count:
            self._pause = 0
        return reached.proposed().best(count)

    def feedback(self, tokens: Sequence[int], rows: int, seconds: float, context: int) -> None:
        if rows == 1 and not self._timed:
            self._timed = True
            self._costs.renew(seconds, context)
        else:
            self._costs.add(rows, seconds, context)
        if self._drafted is not None and self._acceptance.learn(self._drafted, tokens):
            self._idle = self._pause = 0  # drafts were put off for what an earlier request had found


PLUGIN = Goodput
