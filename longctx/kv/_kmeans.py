"""Spherical k-means over many small sets at once, in plain torch and without chance.

Owns clustering. Knows no cache: keys are rows of numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_SCORES = 1 << 24  # similarities held at once


def spherical(keys: Tensor, count: int, iterations: int) -> Tensor:
    """A cluster for every row of ``keys`` [sets, rows, dim], as long [sets, rows] below ``count``.

    Rows are compared by their direction. Starts from evenly spaced rows; an empty cluster takes the row that fits its
    own cluster worst. Equal similarities go to the lower cluster, so that a run can be repeated.
    """
    sets, rows, dim = keys.shape
    count = min(count, rows)
    unit = F.normalize(keys.float(), dim=-1)
    labels, fit = nearest(unit, unit[:, spaced(rows, count).to(unit.device)])
    for _ in range(iterations):
        centres = _centres(unit, labels, fit, count)
        before = labels
        labels, fit = nearest(unit, centres)
        if torch.equal(labels, before):
            break
    return labels


def spaced(rows: int, count: int) -> Tensor:
    """``count`` of so many rows, evenly spaced, long [count]."""
    return torch.arange(count) * rows // count


def nearest(unit: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The centre that every row [sets, rows, dim] is most similar to, long [sets, rows], and how similar it is."""
    sets, rows, _ = unit.shape
    labels = torch.empty(sets, rows, dtype=torch.long, device=unit.device)
    fit = torch.empty(sets, rows, device=unit.device)
    step = max(1, _SCORES // max(1, sets * centres.shape[1]))
    for at in range(0, rows, step):
        fit[:, at : at + step], labels[:, at : at + step] = (unit[:, at : at + step] @ centres.transpose(-1, -2)).max(
            -1
        )
    return labels, fit


def _centres(unit: Tensor, labels: Tensor, fit: Tensor, count: int) -> Tensor:
    sets, _, dim = unit.shape
    sums = unit.new_zeros(sets, count, dim)
    sums.scatter_add_(1, labels.unsqueeze(-1).expand(-1, -1, dim), unit)
    sizes = unit.new_zeros(sets, count)
    sizes.scatter_add_(1, labels, torch.ones_like(fit))
    empty = sizes == 0
    if bool(empty.any()):
        worst = fit.argsort(dim=-1, stable=True)
        turn = (empty.cumsum(-1) - 1).clamp_min(0)  # the n-th empty cluster takes the n-th worst row
        seeds = unit.gather(1, worst.gather(1, turn).unsqueeze(-1).expand(-1, -1, dim))
        sums = torch.where(empty.unsqueeze(-1), seeds, sums)
    return F.normalize(sums, dim=-1)
