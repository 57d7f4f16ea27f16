"""Counts what passes over a bounded cache read, and what share of the attention went to keys they did not read.

Owns sums and their report. Knows no policy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longctx.backend.parts import Part
from longctx.keys import Choice, KVReport


class Meter:
    """``audit_every`` k measures the true share in every k-th pass, which reads all keys; 0 never."""

    def __init__(self, tokens: int, audit_every: int = 0) -> None:
        self.tokens, self.audit_every = tokens, audit_every
        self._passes: dict[int, int] = {}
        self._read, self._calls = 0.0, 0
        self._unread, self._estimates = 0.0, 0
        self._true, self._audits = 0.0, 0

    def audits(self, layer: int) -> bool:
        return self.audit_every > 0 and self._passes.get(layer, 0) % self.audit_every == 0

    def count(self, layer: int, choice: Choice, slots: int, read: Part, new: Part) -> None:
        """One choice and what came of it; ``new`` are the tokens behind the context."""
        if choice.slots is None:
            self._read += slots
        else:
            self._read += choice.slots.shape[2] if choice.read is None else float(choice.read.float().sum(2).mean())
        self._calls += 1
        if choice.unread is not None:
            known = torch.logaddexp(read.log, new.log)
            self._unread += _share(choice.unread.log, torch.logaddexp(known, choice.unread.log))
            self._estimates += 1
        elif choice.slots is None and slots == self.tokens:
            self._estimates += 1  # all was read

    def audit(self, read: Part, whole: Part, new: Part) -> None:
        """What the read slots have of the attention, against all that are stored."""
        total = torch.logaddexp(whole.log, new.log)
        seen = torch.logaddexp(read.log, new.log)
        self._true += max(0.0, 1.0 - _share(seen, total))
        self._audits += 1

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
            unread_share=self._unread / self._estimates if self._estimates else None,
            audited=sum(1 for p in range(passes) if p % self.audit_every == 0) if self._audits else 0,
            true_unread_share=self._true / self._audits if self._audits else None,
        )


def _share(some: Tensor, whole: Tensor) -> float:
    """The mean over rows of one part of the attention, both given as logarithms."""
    return float((some - whole).exp().mean())
