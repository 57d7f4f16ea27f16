"""Counts what passes over a bounded cache read, and what share of the attention went to keys they did not read.

Owns sums and their report. What layers say of single passes is kept as it comes and added up later, many at once: it is
said in every layer of every pass, and a sum of a few numbers is mostly its beginning. Knows no policy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from longctx.keys import Choice, KVReport

Alike = TypeVar("Alike")
Item = TypeVar("Item")
_ROUNDING = 1e-5  # of a share, computed as a difference
_MANY = 512  # passes of a layer that are kept before they are added up


class _Pass(NamedTuple):
    """What one layer said of one pass, each a logarithm [batch, kv_heads, rows]."""

    blocks: int
    known: Tensor
    unread: Tensor
    bound: Tensor | None  # what keys that were not read have at most
    weights: Tensor | None  # [batch, 1, rows, 1] of the rows, none of padding; None: all the same


class Meter:
    """``audit_every`` k measures the true share in every k-th pass, which reads all keys; 0 never."""

    def __init__(self, tokens: int, audit_every: int = 0) -> None:
        self.tokens, self.audit_every = tokens, audit_every
        self._passes: dict[int, int] = {}
        self._read, self._calls = 0.0, 0
        self._unread, self._estimates = 0.0, 0
        self._bounds, self._bounded = 0.0, 0
        self._true, self._audits = 0.0, 0
        self._above, self._held = 0.0, 0
        self._counts: list[tuple[int, Tensor]] = []
        self._said: list[_Pass] = []

    def audits(self, layer: int) -> bool:
        return self.audit_every > 0 and self._passes.get(layer, 0) % self.audit_every == 0

    def count(self, choice: Choice, slots: int, blocks: int = 1, weights: Tensor | None = None) -> None:
        """One choice for each of ``blocks``, of a layer that stores so many ``slots``; none for padding alone."""
        if not _real(weights):
            return
        real = None if weights is None else (weights > 0).any(2).view(-1)
        self._calls += blocks
        if choice.slots is None:
            self._read += blocks * slots
        elif choice.counts is None:
            self._read += blocks * choice.slots.shape[-1]
        else:
            self._counts.append((blocks, choice.counts if real is None else choice.counts[real]))
        if choice.unread is None and choice.slots is None and slots == self.tokens:  # all was read
            self._estimates, self._bounded = self._estimates + blocks, self._bounded + blocks
        if len(self._counts) > _MANY:
            self._add_up()

    def estimate(
        self, unread: Tensor, known: Tensor, bound: Tensor | None, blocks: int = 1, weights: Tensor | None = None
    ) -> None:
        """What came of a choice that tells what is ``unread``, beside the mass of all keys that were read.

        Each a logarithm [batch, kv_heads, rows], as what keys that were not read have at most is. ``weights`` are those
        of the rows as in ``Asked``: what padding looked at is nobody's question.
        """
        if not _real(weights):
            return
        self._estimates += blocks
        self._bounded += 0 if bound is None else blocks
        self._said.append(_Pass(blocks, known, unread, bound, weights))
        if len(self._said) > _MANY:
            self._add_up()

    def _add_up(self) -> None:
        """Nothing is kept afterwards."""
        for (blocks, _), counts in _grouped([((b, one.shape), one) for b, one in self._counts]):
            self._read += blocks * float(torch.stack(counts).float().mean(dim=(1, 2)).sum())
        alike = [((one.blocks, one.unread.shape, one.weights is None), one) for one in self._said]
        for (blocks, *_), some in _grouped(alike):
            known, unread = (
                torch.stack(those) for those in zip(*((one.known, one.unread) for one in some), strict=True)
            )
            weights = _stacked([one.weights for one in some])
            self._unread += blocks * _mean_of_rows(_share(unread, known), weights)
            bounded = [place for place, one in enumerate(some) if one.bound is not None]
            bounds = [one.bound for one in some if one.bound is not None]
            if bounds:
                weights = None if weights is None else weights[bounded]
                self._bounds += blocks * _mean_of_rows(_share(torch.stack(bounds), known[bounded]), weights)
        self._counts, self._said = [], []

    def audit(
        self, known: Tensor, whole: Tensor, bound: Tensor | None, blocks: int = 1, weights: Tensor | None = None
    ) -> None:
        """What keys that were read have of the attention, against all that are stored: as logarithms, like a bound."""
        if not _real(weights):
            return
        true = (1 - (known - whole).exp()).clamp_min(0)
        self._true += blocks * _mean_of_rows(true[None], _stacked([weights]))
        self._audits += blocks
        if bound is not None:
            real = torch.ones_like(true) if weights is None else (weights[..., 0] > 0).expand_as(true)
            self._above += float(((true > _share(bound, known) + _ROUNDING) * real).sum())
            self._held += int(real.sum())

    def end(self, layer: int) -> None:
        """The layer's pass is over."""
        self._passes[layer] = self._passes.get(layer, 0) + 1

    def report(self) -> KVReport:
        self._add_up()
        passes = max(self._passes.values(), default=0)
        if not self._calls:
            return KVReport(passes, self.tokens)
        keys = self._read / self._calls
        return KVReport(
            passes=passes,
            context_tokens=self.tokens,
            read_keys=keys,
            read_share=keys / self.tokens,
            unread_share=_mean(self._unread, self._estimates),
            unread_bound=_mean(self._bounds, self._bounded),
            audited=sum(1 for p in range(passes) if p % self.audit_every == 0) if self._audits else 0,
            true_unread_share=_mean(self._true, self._audits),
            above_bound=_mean(self._above, self._held),
        )


def _grouped(those: list[tuple[Alike, Item]]) -> Iterable[tuple[Alike, list[Item]]]:
    """What is alike together."""
    groups: dict[Alike, list[Item]] = {}
    for alike, one in those:
        groups.setdefault(alike, []).append(one)
    return groups.items()


def _real(weights: Tensor | None) -> bool:
    """Whether any row is somebody's question, and not padding."""
    return weights is None or bool((weights > 0).any())


def _stacked(weights: list[Tensor | None]) -> Tensor | None:
    """Weights of some passes, [passes, batch, 1, rows]; None where rows have none."""
    given = [one[..., 0] for one in weights if one is not None]
    return torch.stack(given) if given else None


def _mean_of_rows(shares: Tensor, weights: Tensor | None) -> float:
    """The mean over each pass's [batch, kv_heads, rows] of those with ``weights``, summed over the passes."""
    if weights is None:
        return float(shares.mean(dim=(1, 2, 3)).sum())
    each = weights / weights.sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return float((shares * each).sum(dim=(1, 3)).mean(-1).sum())


def _share(unread: Tensor, known: Tensor) -> Tensor:
    """The share of the attention that is not read, both parts given as logarithms."""
    return (unread - known).sigmoid()


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None
