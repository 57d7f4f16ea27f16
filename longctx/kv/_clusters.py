"""Keys of a layer in clusters that lie side by side, each with what is needed to score it without reading it.

Owns the order of the slots and the statistics. Knows no query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longctx.kv._clusterers import Cluster

_LARGEST = 4  # a cluster of more than this many times the mean size is cut, so that it cannot fill a budget alone


def clustered(
    keys: Tensor, values: Tensor, first: int, last: int, share: float, segment: int, iterations: int, cluster: Cluster
) -> tuple[Tensor, dict[str, Tensor]]:
    """Tokens [first, last) of ``keys`` and ``values`` [kv_heads, tokens, dim] in clusters, ``share`` clusters a token.

    Returns the tokens in the order of their slots, long [kv_heads, tokens], those outside the range in their places,
    and per cluster, padded with empty ones: ``starts``, ``sizes`` long [kv_heads, clusters], ``means``, ``spreads``
    (variances) of its keys and ``says``, the mean of its values, [kv_heads, clusters, dim] in the keys' dtype. Means
    are counted from ``centre``, the mean of all keys in the range, float32 [kv_heads, 1, dim].
    """
    kv_heads, tokens, _ = keys.shape
    labels = _labels(keys[:, first:last], share, segment, iterations, cluster)
    labels = _cut(labels, largest(share))
    inner = labels.argsort(dim=-1, stable=True)
    count = int(labels.max()) + 1
    sizes = torch.zeros(kv_heads, count, dtype=torch.long, device=keys.device)
    sizes.scatter_add_(1, labels, torch.ones_like(labels))
    starts = first + sizes.cumsum(-1) - sizes
    places = torch.arange(tokens, device=keys.device).repeat(kv_heads, 1)
    places[:, first:last] = first + inner
    inner_keys = keys[:, first:last].float()
    centre = inner_keys.mean(1, keepdim=True)
    inner_keys = inner_keys - centre
    means = _mean(inner_keys, labels, sizes)
    squares = _mean(inner_keys.square_(), labels, sizes)
    statistics = {
        "starts": starts,
        "sizes": sizes,
        "centre": centre,
        "means": means.to(keys.dtype),
        "spreads": (squares - means.square()).clamp_min(0).to(keys.dtype),
        "says": _mean(values[:, first:last], labels, sizes).to(values.dtype),
    }
    return places, statistics


def largest(share: float) -> int:
    """The most keys of one cluster where there are ``share`` clusters a token."""
    return max(1, round(_LARGEST / share))


def grouped(
    statistics: dict[str, Tensor], centre: Tensor, share: float, iterations: int, cluster: Cluster
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clusters in groups, ``share`` groups a cluster: the clusters' new order [kv_heads, clusters], and the groups.

    Of each group ``group_starts`` and ``group_counts`` of its clusters, ``group_sizes`` in keys, ``group_means`` from
    ``centre`` like those of clusters, ``group_says``.
    """
    means, sizes = statistics["means"], statistics["sizes"]
    labels = cluster((means + centre).to(means.dtype), max(1, round(share * means.shape[1])), iterations)
    count = int(labels.max()) + 1
    order = labels.argsort(dim=-1, stable=True)
    ones = torch.zeros(len(labels), count, dtype=torch.long, device=labels.device)
    counts = ones.clone().scatter_add_(1, labels, torch.ones_like(labels))
    keys = ones.clone().scatter_add_(1, labels, sizes)
    weighted = {name: statistics[name].float() * sizes.unsqueeze(-1) for name in ("means", "says")}
    sums = {name: _sum(value, labels, count) / keys.clamp_min(1).unsqueeze(-1) for name, value in weighted.items()}
    return order, {
        "group_starts": counts.cumsum(-1) - counts,
        "group_counts": counts,
        "group_sizes": keys,
        "group_means": sums["means"].to(means.dtype),
        "group_says": sums["says"].to(means.dtype),
    }


def _labels(keys: Tensor, share: float, segment: int, iterations: int, cluster: Cluster) -> Tensor:
    """A cluster for every key; keys of one segment share none with those of another."""
    kv_heads, tokens, dim = keys.shape
    whole = tokens // segment
    found = []
    offset = 0
    if whole:
        per = max(1, int(share * segment))
        sets = keys[:, : whole * segment].reshape(kv_heads * whole, segment, dim)
        labels = cluster(sets, per, iterations).view(kv_heads, whole, segment)
        found.append((labels + per * torch.arange(whole, device=keys.device)[:, None]).view(kv_heads, -1))
        offset = per * whole
    if tokens > whole * segment:
        rest = keys[:, whole * segment :]
        found.append(cluster(rest, max(1, int(share * rest.shape[1])), iterations) + offset)
    return torch.cat(found, 1)


def _cut(labels: Tensor, largest: int) -> Tensor:
    """Clusters of more than ``largest`` keys become several, and numbers that no key has are left out."""
    cut = []
    for own in labels:  # one loop over KV heads, when the context is made
        order = own.argsort(stable=True)
        ascending = own[order]
        sizes = torch.bincount(ascending)
        rank = torch.arange(len(own), device=own.device) - (sizes.cumsum(0) - sizes)[ascending]
        finer = torch.empty_like(own)
        finer[order] = ascending * (len(own) // largest + 1) + rank // largest
        cut.append(torch.unique(finer, return_inverse=True)[1])
    return torch.stack(cut)


def _mean(states: Tensor, labels: Tensor, sizes: Tensor) -> Tensor:
    """Means of ``states`` [kv_heads, tokens, dim] by cluster, float32."""
    return _sum(states.float(), labels, sizes.shape[1]) / sizes.clamp_min(1).unsqueeze(-1)


def _sum(states: Tensor, labels: Tensor, count: int) -> Tensor:
    kv_heads, _, dim = states.shape
    sums = states.new_zeros(kv_heads, count, dim)
    return sums.scatter_add_(1, labels.unsqueeze(-1).expand(-1, -1, dim), states)
