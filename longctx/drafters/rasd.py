"""RASD: a tree of copies from the document, pruned by the law of another drafter and grafted onto that one's tree.

The other drafter's first level says which copies are plausible at all; below, its own tree is followed while it knows
the path, and the shares of the copies after that. Trees are joined at the longest path they share (Quan et al. 2025,
arXiv 2503.03434; what the paper leaves open is filled in here).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longctx import plugins
from longctx.drafters.document import Copying
from longctx.drafts import Budget, Draft, DraftSource, Verified
from longctx.protocols import Drafter, Drafting

_PLACES = 48


@dataclass(frozen=True, slots=True)
class Rasd:
    """``base`` is the drafter whose law prunes the copies, by name or, in Python, as an object; ``reach`` and ``first``
    are the least a copy must be worth, in all and at its first token."""

    base: str | Drafter = "recycling"
    reach: float = 0.02
    first: float = 1e-3

    @property
    def needs(self) -> int:
        return self._drafter().needs

    def begin(self, source: DraftSource) -> Grafting:
        return Grafting(self, self._drafter().begin(source), Copying(source, _PLACES))

    def _drafter(self) -> Drafter:
        found: Drafter = plugins.resolve("drafters", self.base)
        return found


class Grafting:
    """The drafter at work: the other one, and the index of the document."""

    def __init__(self, options: Rasd, base: Drafting, copying: Copying) -> None:
        self._options, self._base, self._copying = options, base, copying

    def propose(self, budget: Budget) -> Draft:
        own = self._base.propose(budget)
        copies = self._copying.propose(budget)
        law: dict[tuple[int, ...], float] = {}  # what the base thinks of each path it knows
        paths: list[tuple[int, ...]] = []
        for token, parent, value in zip(own.tokens.tolist(), own.parents.tolist(), own.values.tolist(), strict=True):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
            law[paths[-1]] = value
        unknown = max(0.0, 1.0 - sum(value for path, value in law.items() if len(path) == 1))
        return _joined(own, self._kept(copies, law, unknown), budget.nodes)

    def observe(self, verified: Verified) -> None:
        self._base.observe(verified)
        self._copying.observe(verified)

    def _kept(self, copies: Draft, law: dict[tuple[int, ...], float], unknown: float) -> Draft:
        """The copies that are plausible by the base's law: where it names them, its value, else their own share."""
        paths: list[tuple[int, ...]] = []
        reach: list[float] = []
        place: list[int] = []  # where a kept node stands, -1 for one left out
        kept: list[int] = []
        for node, (token, parent, value) in enumerate(
            zip(copies.tokens.tolist(), copies.parents.tolist(), copies.values.tolist(), strict=True)
        ):
            above = paths[parent] if parent >= 0 else ()
            before = reach[parent] if parent >= 0 else 1.0
            share = value / copies.values[parent] if parent >= 0 else value
            paths.append((*above, token))
            if paths[-1] in law:
                reach.append(max(law[paths[-1]], before * share))
            else:
                reach.append(before * share * (unknown if parent < 0 else 1.0))
            least = self._options.first if parent < 0 else self._options.reach
            fits = reach[-1] >= least and (parent < 0 or place[parent] >= 0)
            place.append(len(kept) if fits else -1)
            if fits:
                kept.append(node)
        origins = copies.origins[kept] if copies.origins is not None else None
        parents = [place[p] if p >= 0 else -1 for p in copies.parents[kept].tolist()]
        return Draft(
            copies.tokens[kept], np.asarray(parents, np.int64), np.asarray([reach[i] for i in kept]), origins=origins
        )


def _joined(one: Draft, other: Draft, nodes: int) -> Draft:
    """Both forests side by side, the ``nodes`` of highest value; equal paths become one where drafts are merged.

    Nothing counts as drawn any more: which copies stay depends on what was.
    """
    shifted = np.where(other.parents >= 0, other.parents + len(one), -1)
    missing = np.full(len(one), -1, dtype=np.int64)
    parents, values = np.concatenate((one.parents, shifted)), np.concatenate((one.values, other.values))
    # stable, and no child is worth more than its parent: every kept node's parent is kept
    kept = np.sort(np.argsort(-values, kind="stable")[:nodes])
    place = np.full(len(parents) + 1, -1, dtype=np.int64)  # the last entry is the anchor's
    place[kept] = np.arange(len(kept))
    came = (
        missing if one.origins is None else one.origins,
        np.full(len(other), -1) if other.origins is None else other.origins,
    )
    tokens, origins = np.concatenate((one.tokens, other.tokens))[kept], np.concatenate(came)[kept]
    return Draft(tokens, place[parents[kept]], values[kept], origins=origins)


PLUGIN = Rasd
