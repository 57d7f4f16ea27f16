"""Clusters by other libraries: the same promise, and what our own are held against."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from haystacks import chosen, haystack, question, tensors

from longctx.errors import BadOption, MissingExtra
from longctx.kv import _clusterers
from longctx.kv._clusterers import Cluster, by, by_faiss, by_sklearn
from longctx.kv._kmeans import spherical
from longctx.kv.squeezed import Squeezed

OTHERS = [pytest.param(by_faiss, id="faiss"), pytest.param(by_sklearn, id="sklearn")]
ALL = [pytest.param(spherical, id="torch"), *OTHERS]


def inertia(keys: torch.Tensor, labels: torch.Tensor) -> float:
    """The sum of the cosines of keys [rows, dim] and the mean direction of their cluster."""
    unit = torch.nn.functional.normalize(keys, dim=-1)
    own = [unit[labels == cluster].sum(0) for cluster in labels.unique()]
    return float(sum(total.norm() for total in own))


def separated(count: int, each: int, dim: int) -> torch.Tensor:
    """``count`` narrow bundles of ``each`` keys, of very different lengths, [count * each, dim]."""
    directions = torch.linalg.qr(tensors(dim, dim, seed=3))[0][:count]
    keys = directions.repeat_interleave(each, 0) + 0.05 * tensors(count * each, dim, seed=4)
    return keys * torch.logspace(-2, 2, count * each)[:, None]


def numbered(labels: torch.Tensor) -> list[int]:
    """The partition alone: clusters by when they are first seen."""
    seen: dict[int, int] = {}
    return [seen.setdefault(label, len(seen)) for label in labels.tolist()]


@pytest.mark.parametrize("bundled", [False, True])
@pytest.mark.parametrize("other", OTHERS)
def test_ours_fit_as_well_as_theirs(other: Cluster, bundled: bool) -> None:
    keys = tensors(480, 16, seed=1)
    if bundled:
        keys = torch.cat([tensors(60, 16, seed=s) * 0.3 + tensors(16, seed=50 + s) for s in range(8)])
        keys = keys[torch.randperm(480, generator=torch.Generator().manual_seed(0))]
    ours, theirs = (inertia(keys, cluster(keys[None], 24, 10)[0]) for cluster in (spherical, other))
    assert ours == pytest.approx(theirs, rel=0.03)
    assert ours > inertia(keys, torch.arange(480) // 20) * 1.01, "no better than pieces of the text"


@pytest.mark.parametrize("cluster", ALL)
def test_bundles_that_lie_apart_are_told_apart(cluster: Cluster) -> None:
    keys = separated(7, 30, 16)
    assert numbered(cluster(keys[None], 7, 5)[0]) == numbered(torch.arange(210) // 30)


@pytest.mark.parametrize("cluster", OTHERS)
def test_sets_are_clustered_one_by_one_and_again_alike(cluster: Cluster) -> None:
    keys = tensors(3, 50, 8)
    labels = cluster(keys, 7, 5)
    assert labels.shape == (3, 50) and labels.dtype == torch.long and labels.max() < 7
    for number in range(3):
        assert torch.equal(labels[number], cluster(keys[number : number + 1], 7, 5)[0])


@pytest.mark.parametrize("keys", [torch.ones(1, 30, 8), torch.zeros(1, 30, 8), tensors(1, 3, 8)])
@pytest.mark.parametrize("cluster", OTHERS)
def test_equal_keys_and_fewer_keys_than_clusters_are_clustered_too(
    cluster: Cluster, keys: torch.Tensor, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = cluster(keys, 5, 5)
    assert labels.shape == keys.shape[:2] and 0 <= int(labels.min()) and int(labels.max()) < 5
    assert capfd.readouterr() == ("", ""), "a library that talks"


@pytest.mark.parametrize("clusterer", ["faiss", "sklearn"])
def test_a_needle_is_read_whoever_clusters(clusterer: _clusterers.Clusterer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, cluster = [], by(clusterer)

    def listening(keys: torch.Tensor, count: int, iterations: int) -> torch.Tensor:
        asked.append(count)
        return cluster(keys, count, iterations)

    monkeypatch.setattr(_clusterers, f"by_{clusterer}", listening)
    layer = haystack(200, needle=90)
    policy = Squeezed(budget=60, sinks=2, recent=8, clusterer=clusterer)
    for tokens in chosen(policy, layer, question(layer))[0]:
        assert 90 in tokens and {0, 1, *range(192, 200)} <= tokens
    assert asked == [19]
    dataclasses.replace(policy, levels=2).index(layer, 60)
    assert asked[:2] == [19, 19] and len(asked) == 3 and asked[2] <= 3, "keys, and their clusters in groups"


def test_another_word_is_refused_before_a_text_is_read() -> None:
    with pytest.raises(BadOption, match="clusterer='faise' must be one of torch, faiss, sklearn"):
        Squeezed(clusterer="faise")  # type: ignore[arg-type]


def test_a_library_that_is_not_there_is_named_before_a_text_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_clusterers, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"clusterer=faiss needs faiss.*pip install .*dense"):
        Squeezed(clusterer="faiss")
    assert Squeezed(clusterer="sklearn").clusterer == "sklearn", "scikit-learn comes with the core install"
