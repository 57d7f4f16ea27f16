"""The tree of drafted tokens as arrays: merging drafts, cutting to a count, and the order in which rows are verified.

Knows tokens and numbers only: not who drafted them, nor what is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from longctx.drafts import Draft


@dataclass(frozen=True, slots=True)
class Attempt:
    """A draw below ``parent``; ``node`` is -1 where its token is none of the vocabulary, and can only be rejected."""

    parent: int
    node: int
    ids: NDArray[np.int64]  # [support]
    probabilities: NDArray[np.float64]  # [support]


@dataclass(frozen=True)
class TokenTree:
    """Nodes with distinct (parent, token); a parent stands before its children and is never worth less.

    ``sources`` has bit ``s`` set where draft ``s`` proposed the node.
    """

    tokens: NDArray[np.int64]  # [nodes]
    parents: NDArray[np.int64]  # [nodes], -1 for children of the anchor
    depths: NDArray[np.int64]  # [nodes], 1 for children of the anchor
    values: NDArray[np.float64]  # [nodes]
    sources: NDArray[np.int64]  # [nodes]
    draws: tuple[Attempt, ...] = ()
    origins: NDArray[np.int64] | None = None  # [nodes]

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def children(self) -> dict[int, dict[int, int]]:
        """The children of each node, as parent -> token -> node."""
        found: dict[int, dict[int, int]] = {}
        for node, (parent, token) in enumerate(zip(self.parents.tolist(), self.tokens.tolist(), strict=True)):
            found.setdefault(parent, {})[token] = node
        return found

    @cached_property
    def attempts(self) -> dict[int, tuple[Attempt, ...]]:
        """The draws made below each node, in draw order. One node may have been drawn twice, from two laws."""
        found: dict[int, tuple[Attempt, ...]] = {}
        for draw in self.draws:
            found[draw.parent] = (*found.get(draw.parent, ()), draw)
        return found

    @property
    def is_chain(self) -> bool:
        return bool(np.array_equal(self.parents, np.arange(-1, len(self) - 1)))

    def path(self, node: int) -> list[int]:
        """The nodes from the anchor's child down to ``node``; none for the anchor, -1."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = int(self.parents[node])
        return nodes[::-1]

    def best(self, count: int) -> TokenTree:
        """The ``count`` nodes of highest value; where any is left out, what was drawn counts as proposed.

        Draws may be kept only if what was drawn has no say in whether anything is left out: see ``proposed``.
        """
        if count >= len(self):
            return self
        # stable, and no child is worth more than its parent: every kept node's parent is kept
        kept = np.sort(np.argsort(-self.values, kind="stable")[: max(count, 0)])
        return self._pick(kept, ())

    def proposed(self) -> TokenTree:
        """The same nodes, all of them as proposed: for a cut that looks at values, whether it cuts or not.

        Keeping draws only where nothing was cut would condition on what was drawn: their laws would not be true.
        """
        return replace(self, draws=())

    def chain(self) -> TokenTree:
        """The path that follows the child of highest value at every node; nothing of it counts as drawn."""
        nodes: list[int] = []
        at = -1
        while below := self.children.get(at):
            at = max(below.values(), key=lambda node: (self.values[node], -node))
            nodes.append(at)
        return self._pick(np.asarray(nodes, dtype=np.int64), ())

    def best_path_first(self) -> TokenTree:
        """The same tree, depth first with the best child first: if the best path is accepted, it is the first rows."""
        if self.is_chain:
            return self
        order: list[int] = []
        below = {
            parent: sorted(nodes.values(), key=lambda node: (self.values[node], -node))
            for parent, nodes in self.children.items()
        }
        waiting = list(below.get(-1, ()))
        while waiting:
            node = waiting.pop()
            order.append(node)
            waiting.extend(below.get(node, ()))
        return self._pick(np.asarray(order, dtype=np.int64), self.draws)

    def _pick(self, nodes: NDArray[np.int64], draws: tuple[Attempt, ...]) -> TokenTree:
        """The given nodes in the given order, parents first."""
        place = np.full(len(self) + 1, -1, dtype=np.int64)  # the last entry is the anchor's
        place[nodes] = np.arange(len(nodes))
        moved = tuple(replace(draw, parent=int(place[draw.parent]), node=int(place[draw.node])) for draw in draws)
        return TokenTree(
            self.tokens[nodes],
            place[self.parents[nodes]],
            self.depths[nodes],
            self.values[nodes],
            self.sources[nodes],
            moved,
            None if self.origins is None else self.origins[nodes],
        )


def merge(drafts: Sequence[Draft], depth: int, vocabulary: int) -> TokenTree:
    """One tree of all drafts: equal tokens below equal paths become one node, worth the highest of their values.

    Tokens outside ``[0, vocabulary)``, nodes deeper than ``depth`` and what hangs below them are left out. Siblings
    stay in the order in which they came, those of earlier drafts first.
    """
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    values: list[float] = []
    sources: list[int] = []
    origins: list[int] = []
    draws: list[Attempt] = []
    places: dict[tuple[int, int], int] = {}
    for source, draft in enumerate(drafts):
        own: list[int | None] = []  # where each node of this draft went
        came = draft.origins.tolist() if draft.origins is not None else [-1] * len(draft)
        for token, parent, value, origin in zip(
            draft.tokens.tolist(), draft.parents.tolist(), draft.values.tolist(), came, strict=True
        ):
            above = -1 if parent < 0 else own[parent]
            at = 1 if above is None or above < 0 else depths[above] + 1
            if above is None or at > depth or not 0 <= token < vocabulary:
                own.append(None)
                continue
            value = min(value, 1.0 if above < 0 else values[above])
            node = places.setdefault((above, token), len(tokens))
            own.append(node)
            if node < len(tokens):
                values[node] = max(values[node], value)
                sources[node] |= 1 << source
                origins[node] = origins[node] if origins[node] >= 0 else origin
                continue
            tokens.append(token)
            parents.append(above)
            depths.append(at)
            values.append(value)
            sources.append(1 << source)
            origins.append(origin)
        for draw in draft.draws:
            parent, place = int(draft.parents[draw.node]), own[draw.node]
            under = -1 if parent < 0 else own[parent]
            foreign = not 0 <= draft.tokens[draw.node] < vocabulary
            if under is not None and (place is not None or (foreign and (under < 0 or depths[under] < depth))):
                draws.append(Attempt(under, -1 if place is None else place, draw.ids, draw.probabilities))
    return TokenTree(
        np.asarray(tokens, dtype=np.int64),
        np.asarray(parents, dtype=np.int64),
        np.asarray(depths, dtype=np.int64),
        np.asarray(values, dtype=np.float64),
        np.asarray(sources, dtype=np.int64),
        tuple(draws),
        np.asarray(origins, dtype=np.int64),
    )
