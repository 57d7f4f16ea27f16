"""Adaptive draft-verification (ADED): a table of trigrams, searched as a game tree.

Weights of trigrams grow as the text repeats them; a search that weighs what is likely against what was seldom tried
decides which paths are verified (Liu et al. 2024, arXiv 2407.12021). Learns from committed text only.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from longctx.drafts import Budget, Draft, DraftSource, Verified

_SUCCESSORS = 12  # of a pair, the heaviest
_STEP, _MOST = 0.04, 3.0  # what a trigram gains every round it stands in the window, and its limit
_WINDOW = 16
_LENGTH = 4  # of a path
_EXPLORE, _BASE = 32.0, 8.0  # PUCT's constants

Table = dict[tuple[int, int], dict[int, float]]


@dataclass(frozen=True, slots=True)
class AdaptiveTrigram:
    """``iterations`` of the search are made every round; ``seed`` is that of its roll-outs."""

    iterations: int = 100
    seed: int = 0
    needs: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if min(self.iterations, self.seed) < 0:
            raise ValueError(f"iterations={self.iterations} and seed={self.seed} must not be negative")

    def begin(self, source: DraftSource) -> Searching:
        return Searching(self, source)


@dataclass(slots=True)
class _Node:
    """One token of the search tree: its share among its siblings, and what the roll-outs through it were worth."""

    pair: tuple[int, int]
    share: float = 1.0
    visits: int = 0
    worth: float = 0.0
    children: dict[int, _Node] = field(default_factory=dict)
    expanded: bool = False


class Searching:
    """The drafter at work: the trigrams of document, prompt and answer."""

    def __init__(self, options: AdaptiveTrigram, source: DraftSource) -> None:
        self._options = options
        self._rng = np.random.default_rng(options.seed)
        self._recent = source.prompt[-_WINDOW:].tolist()
        text = source.prompt.tolist()
        if source.document is not None:
            text = [*source.document.tolist(), *text]
        self._table = _seeded(text)

    def propose(self, budget: Budget) -> Draft:
        if len(self._recent) < 2:
            return Draft.empty()
        root = _Node((self._recent[-2], self._recent[-1]))
        if root.pair not in self._table:
            return Draft.empty()
        self._rng = np.random.default_rng([self._options.seed, *self._recent])
        length = min(_LENGTH, budget.depth)
        for _ in range(self._options.iterations):
            self._iterate(root, length)
        return _most_visited(root, budget.nodes)

    def observe(self, verified: Verified) -> None:
        self._recent = [*self._recent, *verified.tokens][-_WINDOW:]
        for a, b, c in zip(self._recent, self._recent[1:], self._recent[2:], strict=False):
            after = self._table.setdefault((a, b), {})
            after[c] = min(_MOST, after.get(c, 0.0) + _STEP)
            if len(after) > _SUCCESSORS:
                del after[min(after, key=lambda token: after[token])]

    def _iterate(self, root: _Node, length: int) -> None:
        """Selection by PUCT, expansion, a random roll-out by weight, and its worth handed back up the path."""
        path = [root]
        while len(path) <= length and path[-1].expanded and path[-1].children:
            path.append(_selected(path[-1]))
        leaf = path[-1]
        if not leaf.expanded and len(path) <= length:
            after = self._table.get(leaf.pair, {})
            total = sum(after.values())
            leaf.children = {token: _Node((leaf.pair[1], token), w / total) for token, w in after.items()}
            leaf.expanded = True
        worth = 1.0 + sum(self._table[one.pair][two.pair[1]] for one, two in zip(path, path[1:], strict=False))
        pair = leaf.pair
        for _ in range(length + 1 - len(path)):
            after = self._table.get(pair, {})
            if not after:
                break
            weights = np.fromiter(after.values(), dtype=np.float64)
            token = list(after)[int(self._rng.choice(len(weights), p=weights / weights.sum()))]
            worth += after[token]
            pair = (pair[1], token)
        for node in path:
            node.visits += 1
            node.worth += worth


def _selected(node: _Node) -> _Node:
    factor = _EXPLORE + math.log((node.visits + _BASE + 1) / _BASE)

    def score(child: _Node) -> float:
        if not child.visits:
            return math.inf if child.share > 0 else 0.0
        return child.worth / child.visits + factor * child.share * math.sqrt(node.visits) / (1 + child.visits)

    return max(node.children.values(), key=lambda child: (score(child), child.share))


def _most_visited(root: _Node, nodes: int) -> Draft:
    """The ``nodes`` most visited tokens of the search tree, worth their share of the visits."""
    tokens: list[int] = []
    parents: list[int] = []
    values: list[float] = []
    waiting = [(-1, child) for child in root.children.values()]
    while waiting and len(tokens) < nodes:
        best = max(range(len(waiting)), key=lambda i: (waiting[i][1].visits, -i))
        parent, node = waiting.pop(best)
        if not node.visits:
            break
        waiting += [(len(tokens), child) for child in node.children.values()]
        tokens.append(node.pair[1])
        parents.append(parent)
        values.append(node.visits / root.visits)
    return Draft(np.asarray(tokens, np.int64), np.asarray(parents, np.int64), np.asarray(values, np.float64))


def _seeded(text: list[int]) -> Table:
    """The trigrams of a text, counts as shares, the heaviest of each pair."""
    counts: dict[tuple[int, int], Counter[int]] = {}
    for a, b, c in zip(text, text[1:], text[2:], strict=False):
        counts.setdefault((a, b), Counter())[c] += 1
    table: Table = {}
    for pair, after in counts.items():
        total = after.total()
        table[pair] = {token: count / total for token, count in after.most_common(_SUCCESSORS)}
    return table


PLUGIN = AdaptiveTrigram
