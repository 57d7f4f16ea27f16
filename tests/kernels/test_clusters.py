"""The kernels for clusters: masses by two statistics, and the likeliest clusters within a budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import threads

from longctx.kernels import cluster_choice, clusters

MEANS = torch.ones(1, 2, 64)
needed = pytest.mark.skipif(not clusters.suits(MEANS, MEANS), reason="no kernel can be had here")
FORMATS = (torch.float32, torch.bfloat16, torch.float16)


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needed
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", FORMATS)
@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 100)),
    vectors=st.integers(1, 4),
    room=st.integers(0, 400),
    alike=st.booleans(),
    seed=st.integers(0, 999),
)
def test_masses_and_choices_are_those_on_tensors(
    dtype: torch.dtype,
    count: int,
    shape: tuple[int, int, int, int],
    vectors: int,
    room: int,
    alike: bool,
    seed: int,
) -> None:
    (batch, heads, rows, some), width, draw = shape, 16 * vectors, torch.Generator().manual_seed(seed)
    query = drawn(batch, heads, rows, width, seed=seed).to(dtype)
    means = (
        torch.zeros(heads, some, width, dtype=dtype) if alike else drawn(heads, some, width, seed=seed + 1).to(dtype)
    )
    spreads = means.abs()
    sizes = torch.randint(0, 9, (heads, some), generator=draw)
    logs = torch.where(sizes > 0, sizes.clamp_min(1).log(), -1e38)
    if alike:  # keys that are all as likely as each other
        sizes, logs = torch.full((heads, some), 4), torch.full((heads, some), 4.0).log()
    added = drawn(batch, heads, rows, seed=seed + 2)
    with threads(count):
        found = clusters.masses(query, means, spreads, logs, added, 0.2)
    expected = clusters.reference(query, means, spreads, logs, added, 0.2)
    assert found.shape[-1] % 8 == 0 and bool((found[..., some:] == clusters.LOWEST).all())
    torch.testing.assert_close(found[..., :some], expected, rtol=1e-5, atol=1e-4)

    starts, says = sizes.cumsum(-1) - sizes, drawn(heads, some, width, seed=seed + 3).to(dtype)
    known, weights = drawn(batch, heads, rows, seed=seed + 4), torch.rand(batch, heads, rows, generator=draw) + 0.1
    slots = torch.full((batch, heads, room + 3), -1)
    plain = cluster_choice.reference(found.clone(), known, weights, sizes, starts, says, slots[..., 1 : room + 1])
    other = slots.clone()
    given_ = slots.fill_(-1)[..., 1 : room + 1]
    with threads(count):
        chosen = cluster_choice.choose(found, known, weights, sizes, starts, says, given_)
    assert torch.equal(slots, other), "other slots, or written beside them"
    assert torch.equal(chosen.counts, plain.counts) and torch.equal(chosen.left * (sizes > 0), plain.left * (sizes > 0))
    partly = chosen.counts < sizes.sum(-1)
    for own, reference in zip(chosen[2:], plain[2:], strict=True):
        torch.testing.assert_close(own[partly], reference[partly], rtol=1e-4, atol=1e-4)


@needed
def test_of_clusters_as_likely_as_each_other_the_first_are_read_until_one_does_not_fit() -> None:
    means = torch.zeros(1, 5, 16)
    sizes = torch.full((1, 5), 3)
    masses = clusters.masses(torch.zeros(1, 1, 1, 16), means, means, sizes.log(), torch.zeros(1, 1, 1), 1.0)
    slots, one = torch.zeros(1, 1, 8, dtype=torch.long), torch.ones(1, 1, 1)
    chosen = cluster_choice.choose(masses, -1e30 * one, one, sizes, sizes.cumsum(-1) - sizes, means, slots)
    assert slots[0, 0, :6].tolist() == [0, 1, 2, 3, 4, 5] and chosen.counts.tolist() == [[6]]
    assert chosen.left.tolist() == [[[0, 0, 1, 1, 1]]]
    assert float(chosen.log) == pytest.approx(float(torch.tensor(9.0).log()))


@needed
def test_the_budget_goes_to_likely_keys_and_not_to_large_clusters() -> None:
    means = torch.zeros(1, 3, 16)
    means[0, :, 0] = torch.tensor([1.0, 2.0, 3.0])
    sizes = torch.tensor([[100, 10, 1]])
    rows = torch.zeros(1, 1, 1, 16)
    rows[..., 0] = 1.0
    masses = clusters.masses(rows, means, 0 * means, sizes.log(), torch.zeros(1, 1, 1), 1.0)
    slots, one = torch.zeros(1, 1, 11, dtype=torch.long), torch.ones(1, 1, 1)
    chosen = cluster_choice.choose(masses, 0 * one, one, sizes, sizes.cumsum(-1) - sizes, means, slots)
    assert slots[0, 0].tolist() == [*range(100, 110), 110] and chosen.left.tolist() == [[[1, 0, 0]]]


@needed
def test_what_does_not_fit_is_refused() -> None:
    rows, means, logs, added = torch.ones(1, 2, 3, 16), torch.ones(2, 5, 16), torch.zeros(2, 5), torch.zeros(1, 2, 3)
    for given_ in (
        (rows, means, means[:, :4], logs, added),
        (rows, means, means.bfloat16(), logs, added),
        (rows[..., :8], means, means, logs, added),
        (rows, means, means, logs[:1], added),
        (rows, means, means, logs, added[..., :2]),
        (rows, means.transpose(0, 1).contiguous().transpose(0, 1), means, logs, added),
    ):
        with pytest.raises(ValueError, match="where suits"):
            clusters.masses(*given_, 1.0)
    masses = clusters.masses(rows, means, means, logs, added, 1.0)
    sizes = torch.ones(2, 5, dtype=torch.long)
    slots = torch.zeros(1, 2, 4, dtype=torch.long)
    for other in (
        (masses[..., :7], added, added, sizes, sizes, means, slots),
        (masses, added[..., :2], added, sizes, sizes, means, slots),
        (masses, added, added, sizes.int(), sizes, means, slots),
        (masses, added, added, sizes, sizes, means[:, :4], slots),
        (masses, added, added, sizes, sizes, means, slots.int()),
        (masses, added, added, sizes, sizes, means, slots[:, :1]),
        (masses.double(), added, added, sizes, sizes, means, slots),
    ):
        with pytest.raises(ValueError, match="where suits"):
            cluster_choice.choose(*other)
