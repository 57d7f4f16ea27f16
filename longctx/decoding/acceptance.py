"""Which drafted tokens are kept: rules that walk a tree and never change the law of what comes out.

Owns the walk. Knows no drafter; a rule sees tokens, and for drawn nodes the law they were drawn from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from longctx.decoding.laws import Laws
from longctx.decoding.noise import gumbel, uniforms
from longctx.decoding.tree import TokenTree

_EMPTY = 1e-9  # a residual of less mass than this is rounding: the rejection before it had no chance


class Rule(Protocol):
    """Which nodes are kept, from the anchor down, and the token that the model puts after the last of them."""

    def walk(self, tree: TokenTree, laws: Laws) -> tuple[list[int], int]: ...


@dataclass(frozen=True, slots=True)
class Greedy:
    """The likeliest token at every node: steps into the child that holds it, and ends where there is none."""

    def walk(self, tree: TokenTree, laws: Laws) -> tuple[list[int], int]:
        path: list[int] = []
        node = -1
        while True:
            token = laws.best(node)
            child = tree.children.get(node, {}).get(token)
            if child is None:
                return path, token
            path.append(child)
            node = child


@dataclass(frozen=True, slots=True)
class SharedNoise:
    """Draws the token at each position with noise of ``seed`` and the position alone (the Gumbel-max trick).

    The tokens are the same for one seed whatever was drafted, and follow the model's law.
    """

    seed: int

    def walk(self, tree: TokenTree, laws: Laws) -> tuple[list[int], int]:
        path: list[int] = []
        node = -1
        while True:
            logits = laws.logits(node)
            noise = gumbel(self.seed, laws.position(node), logits.shape[-1], logits.device)
            token = int((logits + noise).argmax())
            child = tree.children.get(node, {}).get(token)
            if child is None:
                return path, token
            path.append(child)
            node = child


@dataclass(frozen=True, slots=True)
class Residual:
    """Speculative sampling on a tree (Leviathan et al. 2023; several children: Miao et al. 2024).

    Accepts a drawn child with probability min(1, r/q) and a proposed one with probability r, where r is what is left
    of the model's law after the children before it were rejected. The law of the output is the model's.
    """

    seed: int

    def walk(self, tree: TokenTree, laws: Laws) -> tuple[list[int], int]:
        path: list[int] = []
        node = -1
        while True:
            law = laws.logits(node).cpu().double().softmax(-1).numpy()
            draw = uniforms(self.seed, laws.position(node))
            children, chances, rest = offers(tree, node, law)
            child = next((c for c, chance in zip(children, chances, strict=True) if draw.random() < chance), None)
            if child is None:
                return path, int(draw.choice(len(rest), p=rest))
            path.append(child)
            node = child


def offers(tree: TokenTree, node: int, law: NDArray[np.float64]) -> tuple[list[int], list[float], NDArray[np.float64]]:
    """The children of ``node`` in the order in which they are tried, the chance of each once all before it were
    rejected, and the law of the token where all were.

    Drawn children come first, in draw order: had a proposed child of the same token been rejected before, its draw
    could only fail. A token drawn twice is tried twice; one outside the vocabulary is rejected at once.
    """
    children: list[int] = []
    chances: list[float] = []
    left = law
    for draw in tree.attempts.get(node, ()):
        if draw.node >= 0:
            token = tree.tokens[draw.node]
            q = float(draw.probabilities[draw.ids == token].sum())
            children.append(draw.node)
            chances.append(min(1.0, float(left[token]) / q))
        known = (draw.ids >= 0) & (draw.ids < len(left))  # the model never says the others
        over = left.copy()
        over[draw.ids[known]] = np.maximum(over[draw.ids[known]] - draw.probabilities[known], 0.0)
        left = _normal(over, left)
    drawn = set(children)
    for token, child in tree.children.get(node, {}).items():
        if child in drawn:
            continue
        children.append(child)
        chances.append(float(left[token]))
        over = left.copy()
        over[token] = 0.0
        left = _normal(over, left)
    return children, chances, left


def _normal(over: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
    """``over`` as a law; where nothing is left of it, ``before``: then the rejection itself was rounding."""
    total = float(over.sum())
    return over / total if total > _EMPTY else before
