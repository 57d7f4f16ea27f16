"""Counts what passes over a bounded cache read, and what share of the attention went to keys they did not read.

Owns sums and their report. Knows no policy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longctx.backend.parts import Part
from longctx.keys import Choice, KVReport

_ROUNDING = 1e-5  # of a share, computed as a difference


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

    def audits(self, layer: int) -> bool:
        return self.audit_every > 0 and self._passes.get(layer, 0) % self.audit_every == 0

    def count(self, choice: Choice, slots: int, read: Part, new: Part, bound: Tensor | None, blocks: int = 1) -> None:
        """One choice for each of ``blocks`` and what came of it; ``new`` are the tokens behind the context.

        ``bound`` is the logarithm of what the keys that were not read have at most.
        """
        if choice.slots is None:
            self._read += blocks * slots
        else:
            most = choice.slots.shape[-1]
            self._read += blocks * (most if choice.counts is None else float(choice.counts.float().mean()))
        self._calls += blocks
        known = torch.logaddexp(read.log, new.log)
        if choice.unread is not None:
            self._unread += blocks * float(_share(choice.unread.log, known).mean())
            self._estimates += blocks
        elif choice.slots is None and slots == self.tokens:  # all was read
            self._estimates, self._bounded = self._estimates + blocks, self._bounded + blocks
        if bound is not None:
            self._bounds += blocks * float(_share(bound, known).mean())
            self._bounded += blocks

    def audit(self, read: Part, whole: Part, new: Part, bound: Tensor | None, blocks: int = 1) -> None:
        """What the read slots have of the attention, against all that are stored."""
        known = torch.logaddexp(read.log, new.log)
        true = (1 - (known - torch.logaddexp(whole.log, new.log)).exp()).clamp_min(0)
        self._true += blocks * float(true.mean())
        self._audits += blocks
        if bound is not None:
            self._above += float((true > _share(bound, known) + _ROUNDING).float().sum())
            self._held += true.numel()

    def end(self, layer: int) -> None:
        """The layer's pass is over."""
        self._passes[layer] = self._passes.get(layer, 0) + 1

    def report(self) -> KVReport:
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


def _share(unread: Tensor, known: Tensor) -> Tensor:
    """The share of the attention that is not read, both parts given as logarithms."""
    return (unread - known).sigmoid()


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None
