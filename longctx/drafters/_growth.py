"""How a tree grows from laws of the next token: the likeliest nodes, or draws that the residual rule may trust.

A drawn tree decides to draw before it looks at what was drawn: only then is each child's law the one it was drawn from.
Knows no model; a law is asked for by its context.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from longctx.drafters._shape import Ranks
from longctx.drafts import Budget, Draft, Draw

Law = dict[int, float]
LawOf = Callable[[Sequence[int]], Law]
"""The law after some tokens, as weights; empty where nothing is known. Its sum says how far it is trusted."""

Shares = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Tokens and their probabilities, which sum to 1."""

Growth = Literal["likeliest", "shaped", "rsd_c", "rsd_s", "dyspec", "dyspec_threshold"]
_BRANCHES = (3, 2)  # rsd_c: children of the anchor and of its children; one below
_WIDTH = 3  # rsd_s: paths kept at every level


class _Tree:
    """Nodes as they are added."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.values: list[float] = []
        self.draws: list[Draw] = []

    def add(
        self, token: int, parent: int, value: float, law: tuple[NDArray[np.int64], NDArray[np.float64]] | None
    ) -> int:
        node = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.values.append(value)
        if law is not None:
            self.draws.append(Draw(node, *law))
        return node

    def draft(self) -> Draft:
        return Draft(
            np.asarray(self.tokens, np.int64),
            np.asarray(self.parents, np.int64),
            np.asarray(self.values, np.float64),
            tuple(self.draws),
        )


def grow(
    growth: Growth,
    law_of: LawOf,
    past: Sequence[int],
    budget: Budget,
    rng: np.random.Generator,
    least: float = 0.0,
    shape: Sequence[Ranks] = (),
) -> Draft:
    """A tree of at most ``budget.nodes`` nodes behind ``past``, grown in one of the ways of ``Growth``.

    ``least`` is the value from which ``dyspec_threshold`` draws; 0 stands for one over the nodes. ``shape`` are the
    places at which ``shaped`` draws, as far as they keep the budget.
    """
    if growth == "likeliest":
        return _likeliest(law_of, past, budget)
    if growth == "dyspec_threshold":
        return _dyspec_threshold(law_of, past, budget, rng, least or 1.0 / max(1, budget.nodes))
    if growth == "shaped":
        return _shaped(law_of, past, budget, rng, shape)
    return {"rsd_c": _rsd_c, "rsd_s": _rsd_s, "dyspec": _dyspec}[growth](law_of, past, budget, rng)


def _likeliest(law_of: LawOf, past: Sequence[int], budget: Budget) -> Draft:
    """Nodes by the product of their laws, the highest first."""
    tree = _Tree()
    heap: list[tuple[float, int, int, int, list[int]]] = []  # -value, tie, parent, token, context
    ties = 0

    def offer(parent: int, context: list[int], value: float) -> None:
        nonlocal ties
        for token, chance in law_of(context).items():
            ties += 1
            heapq.heappush(heap, (-value * chance, ties, parent, token, context))

    offer(-1, list(past), 1.0)
    while heap and len(tree.tokens) < budget.nodes:
        worth, _, parent, token, context = heapq.heappop(heap)
        node = tree.add(token, parent, -worth, None)
        if len(context) - len(past) + 1 < budget.depth:
            offer(node, [*context, token], -worth)
    return tree.draft()


def _shaped(
    law_of: LawOf, past: Sequence[int], budget: Budget, rng: np.random.Generator, shape: Sequence[Ranks]
) -> Draft:
    """As many draws at every place as ``shape`` has children there.

    A law of fewer tokens gives fewer; nothing takes their place, as that would look at what was drawn.
    """
    kept = [path for path in shape if len(path) <= budget.depth][: budget.nodes]
    return _by_level(law_of, past, Counter(path[:-1] for path in kept).__getitem__, lambda depth, made: True, rng)


def _rsd_c(law_of: LawOf, past: Sequence[int], budget: Budget, rng: np.random.Generator) -> Draft:
    """Recursive speculative decoding with constant branching (Jeon et al. 2024, arXiv 2402.14160)."""

    def branches(depth: int) -> int:
        return _BRANCHES[depth] if depth < len(_BRANCHES) else 1

    def fits(depth: int, made: int) -> bool:
        widest = math.prod(map(branches, range(depth + 1)))
        return depth < budget.depth and made + widest <= budget.nodes

    return _by_level(law_of, past, lambda place: branches(len(place)), fits, rng)


def _by_level(
    law_of: LawOf,
    past: Sequence[int],
    width: Callable[[Ranks], int],
    fits: Callable[[int, int], bool],
    rng: np.random.Generator,
) -> Draft:
    """``width`` draws at every place, the Gumbel-top-k of its law, level by level while one at a depth ``fits`` behind
    so many nodes."""
    tree = _Tree()
    level: list[tuple[Ranks, int, list[int], float]] = [((), -1, list(past), 1.0)]  # place, node, context, value
    while level and fits(len(level[0][0]), len(tree.tokens)):
        below = []
        for place, parent, context, value in level:
            count = width(place)
            law = law_of(context) if count else {}
            left = value * sum(law.values())
            for rank, (token, ids, chances) in enumerate(without_replacement(law, count, rng)):
                chance = float(chances[ids == token][0])
                node = tree.add(token, parent, left * chance, (ids, chances))
                below.append(((*place, rank), node, [*context, token], left * chance))
                left *= 1.0 - chance
        level = below
    return tree.draft()


def _rsd_s(law_of: LawOf, past: Sequence[int], budget: Budget, rng: np.random.Generator) -> Draft:
    """Recursive speculative decoding by stochastic beam search: the best perturbed paths of every level (Jeon et al.).

    With G the perturbed log-probability of a path, its children's are conditioned on their largest being G (Kool et al.
    2019), so that the kept paths are a sample without replacement of all of them.
    """
    tree = _Tree()
    level: list[tuple[int, list[int], float, float]] = [(-1, list(past), 0.0, 0.0)]  # node, context, log p, G
    for _ in range(budget.depth):
        if len(tree.tokens) + _WIDTH > budget.nodes:
            break
        offers = []
        for place, (parent, context, log, perturbed) in enumerate(level):
            law = law_of(context)
            if not law:
                continue
            ids, chances = _normal(law)
            logs = log + np.log(chances)
            noisy = logs + rng.gumbel(size=len(ids))
            most = noisy.max()
            u = perturbed - noisy + np.log1p(-np.exp(np.minimum(noisy - most, -1e-12)))
            conditioned = perturbed - np.maximum(u, 0) - np.log1p(np.exp(-np.abs(u)))
            offers += [(float(conditioned[i]), place, i, parent, ids, chances, logs) for i in range(len(ids))]
        offers.sort(key=lambda offer: -offer[0])
        below = []
        tried: dict[int, list[int]] = {}
        for perturbed, place, i, parent, ids, chances, logs in offers[:_WIDTH]:
            before = tried.setdefault(parent, [])
            keep = np.asarray([j for j in range(len(ids)) if j not in before])
            law_left = (ids[keep], chances[keep] / chances[keep].sum())
            above = 1.0 if parent < 0 else tree.values[parent]
            node = tree.add(int(ids[i]), parent, above * float(chances[i]), law_left)
            before.append(i)
            below.append((node, [*level[place][1], int(ids[i])], float(logs[i]), perturbed))
        level = below
    return tree.draft()


def _dyspec(law_of: LawOf, past: Sequence[int], budget: Budget, rng: np.random.Generator) -> Draft:
    """DySpec: at the place of highest value, one more draw (Xiong et al. 2024, arXiv 2410.11744).

    A place's value is the chance that all above it are accepted and the siblings before it rejected.
    """
    tree = _Tree()
    heap: list[tuple[float, int, int, list[int], Law]] = []  # -value, tie, parent, context, what is left of its law
    ties = 0

    def offer(value: float, parent: int, context: list[int], law: Law) -> None:
        nonlocal ties
        if law and value > 0:
            ties += 1
            heapq.heappush(heap, (-value, ties, parent, context, law))

    first = law_of(past)
    offer(sum(first.values()), -1, list(past), first)
    while heap and len(tree.tokens) < budget.nodes:
        worth, _, parent, context, law = heapq.heappop(heap)
        ids, chances = _normal(law)
        at = int(rng.choice(len(ids), p=chances))
        token, chance = int(ids[at]), float(chances[at])
        node = tree.add(token, parent, -worth * chance, (ids, chances))
        if len(context) - len(past) + 1 < budget.depth:
            below = law_of([*context, token])
            offer(-worth * chance * sum(below.values()), node, [*context, token], below)
        offer(-worth * (1.0 - chance), parent, context, {t: w for t, w in law.items() if t != token})
    return tree.draft()


def _dyspec_threshold(
    law_of: LawOf, past: Sequence[int], budget: Budget, rng: np.random.Generator, least: float
) -> Draft:
    """DySpec by a threshold: layer by layer, draws at every place as long as its value (as above) is ``least`` or more.

    A law is asked for once a layer and place, so that a model would be asked for all of a layer in one pass.
    """
    tree = _Tree()
    first = law_of(past)
    layer: list[tuple[float, int, list[int], Law]] = [(sum(first.values()), -1, list(past), first)]
    for depth in range(1, budget.depth + 1):
        below: list[tuple[float, int, list[int], Law]] = []
        for value, parent, context, law in layer:
            while law and value > 0 and value >= least and len(tree.tokens) < budget.nodes:
                ids, chances = _normal(law)
                at = int(rng.choice(len(ids), p=chances))
                token, chance = int(ids[at]), float(chances[at])
                node = tree.add(token, parent, value * chance, (ids, chances))
                if depth < budget.depth:
                    after = law_of([*context, token])
                    below.append((value * chance * sum(after.values()), node, [*context, token], after))
                law = {t: w for t, w in law.items() if t != token}
                value *= 1.0 - chance
        layer = below
    return tree.draft()


def without_replacement(
    law: Law, count: int, rng: np.random.Generator
) -> list[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
    """Up to ``count`` tokens drawn one after another, each with the law it was drawn from."""
    left = dict(law)
    drawn = []
    for _ in range(min(count, sum(weight > 0 for weight in law.values()))):
        ids, chances = _normal(left)
        token = int(ids[int(rng.choice(len(ids), p=chances))])
        drawn.append((token, ids, chances))
        del left[token]
    return drawn


def _normal(law: Law) -> Shares:
    """The tokens of positive weight and their shares."""
    kept = [(token, weight) for token, weight in law.items() if weight > 0]
    weights = np.asarray([weight for _, weight in kept], dtype=np.float64)
    return np.asarray([token for token, _ in kept], dtype=np.int64), weights / weights.sum()
