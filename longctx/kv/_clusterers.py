"""By which library directions are clustered: our own, or another one's, to compare with or where it is faster.

Owns what makes the others keep the same promise as ``_kmeans.spherical``: rows compared by their direction, and a
cluster for every one. Both work in main memory, one set after another.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from longctx.errors import BadOption, MissingExtra
from longctx.kv._kmeans import nearest, spaced, spherical

Clusterer = Literal["torch", "faiss", "sklearn"]
Cluster = Callable[[Tensor, int, int], Tensor]  # keys [sets, rows, dim], clusters, iterations -> long [sets, rows]


def check(name: Clusterer) -> None:
    """Raises BadOption for another word, MissingExtra where the library is not installed: before a text is read."""
    if name not in get_args(Clusterer):
        raise BadOption(f"clusterer={name!r} must be one of {', '.join(get_args(Clusterer))}.")
    if name == "faiss" and find_spec("faiss") is None:
        raise MissingExtra("clustering keys with clusterer=faiss", "faiss", "dense")


def by(name: Clusterer) -> Cluster:
    """The function that clusters by the library of that name."""
    return {"torch": spherical, "faiss": by_faiss, "sklearn": by_sklearn}[name]


def by_faiss(keys: Tensor, count: int, iterations: int) -> Tensor:
    """The same by faiss, from the same start; an empty cluster takes half of a large one."""
    import faiss  # an extra

    def centres(unit: Tensor, count: int) -> Tensor:
        rows, dim = unit.shape
        # neither a draw of the rows nor a word about how few they are
        few = {"max_points_per_centroid": rows, "min_points_per_centroid": 1}
        found = faiss.Kmeans(dim, count, niter=iterations, spherical=True, **few)
        found.train(unit.numpy(), init_centroids=unit[spaced(rows, count)].numpy())
        return torch.from_numpy(found.centroids)

    return _each(keys, count, centres)


def by_sklearn(keys: Tensor, count: int, iterations: int) -> Tensor:
    """The same by scikit-learn, from a start drawn far apart (k-means++), as 2411.09688 does; the seed is fixed.

    Its means lie inside the sphere while it runs; a row belongs to the one whose direction is nearest in the end.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    def centres(unit: Tensor, count: int) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=ConvergenceWarning)  # of equal keys: clusters may be empty
            found = KMeans(count, n_init=1, max_iter=iterations, random_state=0).fit(unit.numpy())
        return F.normalize(torch.from_numpy(found.cluster_centers_), dim=-1)

    return _each(keys, count, centres)


def _each(keys: Tensor, count: int, centres: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The nearest of the ``centres`` for every row, set by set."""
    unit = F.normalize(keys.float(), dim=-1)
    own = [centres(one, min(count, keys.shape[1])) for one in unit.cpu()]
    return nearest(unit, torch.stack(own).to(unit.device))[0]
