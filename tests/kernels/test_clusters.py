"""The kernels for clusters: masses by two statistics, and the likeliest clusters within a budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import found_whatever_torch_is_told, needed, threads

from longctx.kernels import cluster_choice, clusters, machine

WAYS = (cluster_choice.choose, cluster_choice.reference)
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
    near = 1.0 if seed % 3 else 300.0  # what is known may leave next to nothing to clusters
    known = (near * drawn(batch, heads, rows, seed=seed + 4)).clamp_max_(60.0)  # but not less than numbers can tell
    weights = torch.rand(batch, heads, rows, generator=draw) + 0.1
    slots = torch.full((batch, heads, room + 3), -1)
    plain = cluster_choice.reference(found.clone(), known, weights, sizes, starts, says, slots[..., 1 : room + 1])
    other = slots.clone()
    given_ = slots.fill_(-1)[..., 1 : room + 1]
    with threads(count):
        chosen = cluster_choice.choose(found, known, weights, sizes, starts, says, given_)
    assert torch.equal(slots, other), "other slots, or written beside them"
    assert torch.equal(chosen.counts, plain.counts)
    partly = chosen.counts < sizes.sum(-1)
    for own, reference in zip(chosen[1:], plain[1:], strict=True):
        torch.testing.assert_close(own[partly], reference[partly], rtol=1e-4, atol=1e-4)


@needed
@pytest.mark.parametrize("count", [1, 2])
def test_nothing_is_read_beside_what_is_given(count: int) -> None:
    """Statistics and masses between numbers that are none."""

    def within(*shape: int, seed: int) -> torch.Tensor:
        made = drawn(*shape, seed=seed)
        room = torch.full((made.numel() + 200,), torch.nan)
        return room[100:-100].copy_(made.flatten()).view(shape)

    means, spreads = within(2, 37, 16, seed=0), within(2, 37, 16, seed=1).abs_()
    rows, logs, added = within(1, 2, 5, 16, seed=2), within(2, 37, seed=3), within(1, 2, 5, seed=4)
    with threads(count):
        found = clusters.masses(rows, means, spreads, logs, added, 0.3)
    expected = clusters.reference(rows, means, spreads, logs, added, 0.3)
    torch.testing.assert_close(found[..., :37], expected, rtol=1e-5, atol=1e-4)
    sizes, says, slots = torch.full((2, 37), 3), within(2, 37, 16, seed=5), torch.zeros(1, 2, 30, dtype=torch.long)
    given_ = (within(1, 2, 5, seed=6), within(1, 2, 5, seed=7).abs_(), sizes, sizes.cumsum(-1) - sizes, says)
    plain = cluster_choice.reference(found.clone(), *given_, slots.clone())
    with threads(count):
        chosen = cluster_choice.choose(found, *given_, slots)
    for own, reference in zip(chosen, plain, strict=True):
        torch.testing.assert_close(own, reference, rtol=1e-4, atol=1e-4)


@needed
@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_within_the_budget_and_is_seen(bad: float) -> None:
    means, sizes = drawn(1, 40, 16, seed=0), torch.full((1, 40), 5)
    masses = clusters.masses(drawn(1, 1, 3, 16, seed=1), means, means.abs(), sizes.log(), torch.zeros(1, 1, 3), 0.3)
    masses[:, :, :, 1, 7:30] = bad
    room, one = torch.full((1, 1, 400), -7), torch.ones(1, 1, 3)
    chosen = cluster_choice.choose(masses, one, one, sizes, sizes.cumsum(-1) - sizes, means, room[..., 100:160])
    assert int(chosen.counts) <= 60 and bool((room[..., :100] == -7).all()) and bool((room[..., 160:] == -7).all())
    taken = room[0, 0, 100 : 100 + int(chosen.counts)]
    assert bool((taken >= 0).all()) and bool((taken < 200).all())
    assert not bool(chosen.out.isfinite().all() and chosen.log.isfinite().all() and chosen.wide.isfinite().all())


@needed
@pytest.mark.parametrize("module", [clusters, cluster_choice])
def test_the_compiler_that_there_is_makes_them_right(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find, code = machine.checked.__wrapped__, module._code
    found_whatever_torch_is_told(module._right)
    monkeypatch.setattr(module, "_compiled", module._compiled.__wrapped__)
    monkeypatch.setattr(module, "_code", lambda *given: code(*given).replace("fadd <", "fsub <"))
    assert all(find(dtype, module._right) == "" for dtype in FORMATS)


@needed
def test_of_clusters_as_likely_as_each_other_the_first_are_read_until_one_does_not_fit() -> None:
    means = torch.zeros(1, 5, 16)
    sizes = torch.full((1, 5), 3)
    masses = clusters.masses(torch.zeros(1, 1, 1, 16), means, means, sizes.log(), torch.zeros(1, 1, 1), 1.0)
    slots, one = torch.zeros(1, 1, 8, dtype=torch.long), torch.ones(1, 1, 1)
    chosen = cluster_choice.choose(masses, -1e30 * one, one, sizes, sizes.cumsum(-1) - sizes, means, slots)
    assert slots[0, 0, :6].tolist() == [0, 1, 2, 3, 4, 5] and chosen.counts.tolist() == [[6]]
    assert float(chosen.log) == pytest.approx(float(torch.tensor(9.0).log()))


@needed
@pytest.mark.parametrize("above", [0.0, 60.0, 80.0, 200.0, 1e4])
def test_what_is_left_is_told_however_little_it_is_beside_what_is_read(above: float) -> None:
    """A first cluster far above the others is read: shares of these are too small for numbers, and their masses not."""
    lanes, sizes = machine.lanes(), torch.tensor([[5, 3, 4, 2]])
    masses = torch.full((2, 1, 1, 2, 2 * lanes), clusters.LOWEST)
    masses[..., :4] = torch.tensor([[above, -2.0, 1.0, 0.5], [above + 3, -1.0, 1.5, 0.0]])[:, None, None, None]
    given = torch.zeros(1, 1, 2), torch.ones(1, 1, 2), sizes, sizes.cumsum(-1) - sizes, drawn(1, 4, lanes, seed=3)
    found, expected = (way(masses.clone(), *given, torch.zeros(1, 1, 5, dtype=torch.long)) for way in WAYS)
    assert found.counts.tolist() == [[5]]
    for own, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(own, reference, rtol=1e-5, atol=1e-5)


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
    assert slots[0, 0].tolist() == [*range(100, 110), 110] and chosen.counts.tolist() == [[11]]
    assert float(chosen.log) == pytest.approx(float(torch.tensor(100.0).log()) + 1.0, rel=1e-5)  # the large one is left


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
