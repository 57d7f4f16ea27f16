"""SmartSpec: the length k of a chain from one rate of acceptance, the same for all tokens, and measured costs.

The rate is a moving mean; the expected tokens of k drafted ones are (1 - a^(k+1)) / (1 - a), and k is the one at which
tokens a second begin to fall (Liu et al. 2024, arXiv 2406.14066).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longctx.decoding.claims import Refuted
from longctx.decoding.costs import RowCosts
from longctx.decoding.tree import TokenTree
from longctx.drafts import Budget

_START, _KEEPS = 0.7, 0.85
_PLAIN = 1.1  # what a round without drafts counts for, as drafting has costs beside the rows
_AGAIN = 32  # rounds after which a chain of one is tried where none paid


@dataclass(frozen=True, slots=True)
class Smartspec:
    """``longest`` bounds k."""

    longest: int = 16

    def __post_init__(self) -> None:
        if self.longest < 1:
            raise ValueError(f"longest={self.longest} must be at least 1")

    def begin(self, costs: RowCosts | None = None, refuted: Refuted | None = None) -> OneRate:
        # the costs of other requests are renewed by a plain pass alone, and this one seldom makes any
        return OneRate(self.longest, RowCosts(alone=costs is not None))


class OneRate:
    """The controller at work."""

    def __init__(self, longest: int, costs: RowCosts) -> None:
        self._longest, self._rate, self._costs = longest, _START, costs
        self._chain: TokenTree | None = None
        self._plain = self._context = 0

    def untimed(self, context: int) -> Sequence[int]:
        return ()

    def expect(self, products: Mapping[int, float]) -> None:
        self._costs.expect(products)

    def plan(self, depth: int, context: int) -> Budget | None:
        self._chain, self._context = None, context
        length = self._length()
        self._plain = 0 if length else self._plain + 1
        if self._plain > _AGAIN:
            self._plain, length = 0, 1
        return Budget(length, min(length, depth)) if length else None

    def cut(self, tree: TokenTree, seconds: float) -> TokenTree:
        self._chain = tree.chain()
        return self._chain

    def feedback(self, tokens: Sequence[int], rows: int, seconds: float, context: int) -> None:
        self._costs.add(rows, seconds, context)
        if self._chain is None or not len(self._chain):
            return
        right = 0
        for drafted, token in zip(self._chain.tokens.tolist(), tokens, strict=False):
            if drafted != token:
                break
            right += 1
        judged = min(len(self._chain), right + 1)
        self._rate = _KEEPS * self._rate + (1 - _KEEPS) * right / judged

    def _length(self) -> int:
        best, tokens, chance = _PLAIN / self._costs.seconds(1, self._context), 1.0, 1.0
        for length in range(1, self._longest + 1):
            chance *= self._rate
            tokens += chance
            worth = tokens / self._costs.seconds(1 + length, self._context)
            if worth < best:
                return length - 1
            best = worth
        return self._longest


PLUGIN = Smartspec
