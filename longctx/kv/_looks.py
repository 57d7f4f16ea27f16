"""Clusters as a pass sees them: how much each would get of its attention, and what is thought of those not read.

Owns the estimates by means and variances, for all clusters or for those of the better groups. Knows no budget and no
rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longctx.keys import Asked, Unread
from longctx.kv import _ranges
from longctx.kv._scores import LOWEST, capped, pooled

_NONE = LOWEST / 4  # the logarithm of no keys
_SCORED = ("starts", "sizes", "logs", "means", "spreads", "says")  # what a cluster is scored and read by


@dataclass(frozen=True, slots=True)
class Look:
    """The clusters that a pass scores, [batch or 1, kv_heads, clusters], and the groups it looks at no closer.

    Means are counted from the index's centre; ``logs`` are the logarithms of ``sizes``.
    """

    starts: Tensor
    sizes: Tensor
    logs: Tensor
    means: Tensor
    spreads: Tensor
    says: Tensor | None  # None where no answer hears of what is not read
    others: tuple[Tensor, Tensor] | None = None  # log mass [batch, kv_heads, rows] of those groups, and what they say

    def orders(self, asked: Asked, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the clusters' masses by their means, and by their variances too, [..., rows, clusters].

        A soft cap leaves the first order only: both are the same tensor then.
        """
        first = _scores(asked, self.means, centre).add_(self.logs[:, :, None])
        return first, first if asked.softcap is not None else _spread(self.spreads, asked).add_(first)

    def joined(self, log: Tensor) -> Tensor:
        """``log``, a mass of clusters [batch, kv_heads, rows], with that of the groups not looked at."""
        return log if self.others is None else torch.logaddexp(log, self.others[0])

    def whole(self, taken: Tensor) -> bool:
        """Whether the clusters ``taken``, bool [batch, kv_heads, clusters], are all that there are."""
        return self.others is None and bool((taken | (self.sizes == 0)).all())

    def left(self, taken: Tensor, first: Tensor, second: Tensor, says: bool = True) -> Unread:
        """What is thought of the clusters that are not ``taken``; ``says`` whether the answer shall hear of it.

        The ``orders`` are used up. Shares of what is left are taken anew: beside what is read they may be too small to
        be told from nothing.
        """
        gone = taken[:, :, None].to(first.dtype).mul_(LOWEST / 2)  # to be added: a mask spread over rows takes longer
        if second is not first:
            second.add_(gone)
        shares, left = softmax(first.add_(gone))
        log, wide = self.joined(left), self.joined(left if second is first else softmax(second)[1])
        return Unread(log, self._said(shares, left, log) if says else None, wide)

    def _said(self, shares: Tensor, log: Tensor, joined: Tensor) -> Tensor:
        """What clusters say in their ``shares`` [..., clusters], with what the groups say that are not looked at."""
        assert self.says is not None
        says = (shares.to(self.says.dtype) @ self.says).float()  # as wide as the values themselves
        if self.others is None:
            return says
        share = (log - joined).exp().unsqueeze(-1)
        return says * share + self.others[1] * (1 - share)


def every(own: Mapping[str, Tensor], says: bool = True) -> Look:
    """All clusters of an index, and what they say where an answer shall hear of it."""
    return _look({name: own[name][None] for name in (_SCORED if says else _SCORED[:-1])})


def visited(own: Mapping[str, Tensor], asked: Asked, least: int = 0) -> Look:
    """The clusters of the better half of the groups, by the likelihood of one of their keys, or of more of them.

    More where the better half holds fewer than ``least`` keys.
    """
    sizes = own["group_sizes"]
    masses = _scores(asked, own["group_means"], own["centre"]) + logs(sizes)[:, None]
    likely = pooled(masses.softmax(-1), asked) / sizes.clamp_min(1)
    order = likely.argsort(dim=-1, descending=True, stable=True)
    held = sizes.expand_as(likely).gather(-1, order)
    half = torch.arange(likely.shape[-1], device=order.device) < (likely.shape[-1] + 1) // 2
    taken = torch.zeros_like(likely, dtype=torch.bool).scatter(-1, order, half | (held.cumsum(-1) - held < least))
    which, count = _ranges.members(taken, own["group_starts"][None], own["group_counts"][None])
    real = torch.arange(which.shape[-1], device=which.device) < count[..., None]
    found = {name: _at(own[name], which) for name in _SCORED}
    found["sizes"], found["logs"] = found["sizes"].masked_fill(~real, 0), found["logs"].masked_fill(~real, _NONE)
    shares, others = softmax(masses.masked_fill(taken[:, :, None], LOWEST))
    return replace(_look(found), others=(others, shares @ own["group_says"].float()))


def softmax(log: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax over the last axis, and the logarithm of its denominator: one pass of exponentials for both."""
    shares = log.softmax(-1)
    return shares, log.amax(-1) - shares.amax(-1).log()


def logs(sizes: Tensor) -> Tensor:
    """Natural logarithms of counts; an empty cluster's is as low as numbers go."""
    return torch.where(sizes > 0, sizes.clamp_min(1).float().log(), _NONE)


def _look(found: Mapping[str, Tensor]) -> Look:
    starts, sizes, logs, means, spreads = (found[name] for name in _SCORED[:-1])
    return Look(starts, sizes, logs, means, spreads, found.get("says"))


def _scores(asked: Asked, means: Tensor, centre: Tensor) -> Tensor:
    """Logits of the rows for clusters by their ``means`` about ``centre``, float32 [..., rows, clusters].

    Products are as narrow as what is stored: what is rounded off is less than what a mean leaves out of its keys. It
    would be more without the centre where keys share a large part, as a bias in dimensions that hardly turn.
    """
    narrow = asked.rows.dtype == means.dtype == torch.bfloat16
    rows, means = (asked.rows, means) if narrow else (asked.rows.float(), means.float())
    logits = (rows @ means.transpose(-1, -2)).float().add_(asked.rows.float() @ centre.transpose(-1, -2))
    return capped(logits.mul_(asked.scale), asked.softcap)


def _spread(spreads: Tensor, asked: Asked) -> Tensor:
    """The second order of a cluster's mass: half the variance of its scores.

    It is worked out in the narrow format where that has the range, for conversions took as long: what is rounded off
    is a part in 256 of a term that is off by more.
    """
    narrow = asked.rows.dtype == spreads.dtype == torch.bfloat16
    rows, spreads = (asked.rows, spreads) if narrow else (asked.rows.float(), spreads.float())
    return (rows * asked.scale).square().mul(0.5).matmul(spreads.transpose(-1, -2)).float()


def _at(states: Tensor, which: Tensor) -> Tensor:
    """[kv_heads, clusters, ...] at long [batch, kv_heads, some]."""
    heads = torch.arange(states.shape[0], device=states.device)[None, :, None]
    return states[heads, which]
