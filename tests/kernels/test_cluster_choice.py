"""The kernel for clusters: masses by two statistics, and the likeliest clusters within a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from machines import always_the_same, found_whatever_torch_is_told, needed, threads
from torch import Tensor

from longctx.kernels import choice_code, cluster_choice, machine
from longctx.kernels.cluster_choice import Chosen, Clusters, choose, reference

FORMATS = (torch.float32, torch.bfloat16, torch.float16)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clusters(means: Tensor, sizes: Tensor, spreads: Tensor | None = None, says: Tensor | None = None) -> Clusters:
    """Clusters whose slots stand behind one another, from slot 0 on."""
    logs = torch.where(sizes > 0, sizes.clamp_min(1).float().log(), -1e38)
    centre = torch.zeros(len(means), 1, means.shape[2])
    spreads, says = 0 * means if spreads is None else spreads, means if says is None else says
    return Clusters(means, spreads, says, centre, logs, sizes, sizes.cumsum(-1) - sizes)


@dataclass
class Case:
    """What is asked of ``choose``."""

    rows: Tensor
    keys: Tensor
    own: Clusters
    ends: tuple[int, int]
    budget: int
    weights: Tensor | None = None
    scale: float = 0.2

    def by(self, way: Any, off: float = 1.0) -> Chosen:
        found: Chosen = way(self.rows, self.keys, self.own, off * self.scale, self.ends, self.budget, self.weights)
        return found


def agree(one: Chosen, case: Case, near: float = 1e-4) -> None:
    """It chooses what the reference does, and thinks the same of the rest where there is one."""
    other = case.by(reference)
    assert torch.equal(one.counts, other.counts) and torch.equal(one.slots, other.slots)
    partly = one.counts < case.own.sizes.sum(-1) + sum(case.ends)
    for own, expected in zip(one[2:], other[2:], strict=True):
        torch.testing.assert_close(own[partly], expected[partly], rtol=near, atol=near)


@needed
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", FORMATS)
@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 100)),
    vectors=st.integers(1, 4),
    share=st.floats(0, 1.1),
    ends=st.tuples(st.integers(0, 4), st.integers(0, 20)),
    same=st.booleans(),
    weighted=st.booleans(),
    near=st.sampled_from([0.0, 1.0, 12.0]),
    seed=st.integers(0, 999),
)
def test_masses_and_choices_are_those_on_tensors(
    dtype: torch.dtype,
    count: int,
    shape: tuple[int, int, int, int],
    vectors: int,
    share: float,
    ends: tuple[int, int],
    same: bool,
    weighted: bool,
    near: float,
    seed: int,
) -> None:
    (batch, heads, rows, some), width, draw = shape, 16 * vectors, torch.Generator().manual_seed(seed)
    means = (0 if same else 1) * drawn(heads, some, width, seed=seed + 1).to(dtype)
    sizes = torch.full((heads, some), 4) if same else torch.randint(0, 9, (heads, some), generator=draw)
    own = clusters(means, sizes, means.abs(), drawn(heads, some, width, seed=seed + 3).to(dtype))
    own = own._replace(centre=drawn(heads, 1, width, seed=seed + 2), starts=own.starts + ends[0])
    tokens = int(sizes.sum(-1).max()) + sum(ends)
    # keys at the ends may leave next to nothing to clusters
    keys = near * drawn(tokens + 2, heads, width + 16, seed=seed + 4).transpose(0, 1)[:, 1:-1, :width].to(dtype)
    weights = torch.rand(batch, 1, rows, 1, generator=draw) + 0.1 if weighted else None
    budget = sum(ends) + int(share * (tokens - sum(ends)))
    case = Case(drawn(batch, heads, rows, width, seed=seed).to(dtype), keys, own, ends, budget, weights)
    less, more = (case.by(reference, off) for off in (1 - 1e-5, 1 + 1e-5))
    assume(torch.equal(less.slots, more.slots))  # no two clusters so near each other that rounding decides
    with threads(count):
        agree(case.by(choose), case, 2e-4)


@needed
@pytest.mark.parametrize(("size", "start"), [(2**32 + 1, 2), (-1, 2), (-4, 2), (3, -1), (3, 2**40), (3, 119)])
def test_a_cluster_of_other_slots_than_there_are_is_refused(
    size: int, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file that somebody made may have one: its slots would be written where nothing is."""
    made: list[Tensor] = []

    def empty(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
        whole = torch.full((math.prod(shape) + 200,), 77, dtype=dtype, device=device)
        made.append(whole[math.prod(shape) :])
        return whole[: math.prod(shape)].view(shape)

    monkeypatch.setattr(cluster_choice.torch, "empty", empty)
    means, sizes = drawn(2, 37, 16, seed=0), torch.full((2, 37), 3)
    case = Case(means[None, :, :1], drawn(2, 120, 16, seed=1), clusters(means, sizes), (2, 3), 35)
    agree(case.by(choose), case)
    case.own.sizes[1, 0], case.own.starts[1, 0] = size, start  # the likeliest: its own mean asks
    with pytest.raises(IndexError, match="none of 120 keys, or more than 35"):
        case.by(choose)
    assert made and all(bool((behind == 77).all()) for behind in made)


@needed
@pytest.mark.parametrize("count", [1, 2])
def test_nothing_is_read_beside_what_is_given(count: int) -> None:
    """All of it between numbers that are none; keys between the ends too."""

    def within(*shape: int, seed: int) -> Tensor:
        made = drawn(*shape, seed=seed)
        room = torch.full((made.numel() + 200,), torch.nan)
        return room[100:-100].copy_(made.flatten()).view(shape)

    means, says, spreads = (within(2, 37, 16, seed=seed) for seed in range(3))
    own = clusters(means, torch.full((2, 37), 3), spreads.abs_(), says)
    own = own._replace(centre=within(2, 1, 16, seed=3), logs=within(2, 37, seed=4), starts=own.starts + 2)
    keys = within(2, 116, 16, seed=5)
    keys[:, 2:113] = torch.nan
    case = Case(within(1, 2, 5, 16, seed=6), keys, own, (2, 3), 35, within(1, 1, 5, 1, seed=7).abs_())
    with threads(count):
        agree(case.by(choose), case)


@needed
@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["means", "keys"])
def test_what_is_no_number_stays_within_the_budget_and_is_seen(where: str, bad: float) -> None:
    own = clusters(drawn(2, 40, 16, seed=0), torch.full((2, 40), 5), says=drawn(2, 40, 16, seed=1))
    case = Case(drawn(1, 2, 3, 16, seed=2), drawn(2, 210, 16, seed=3), own, (4, 6), 70)
    expected = case.by(reference)
    (own.means[0, 7:30] if where == "means" else case.keys[0, :2])[:] = bad
    for count in (1, 2):
        with threads(count):
            chosen = case.by(choose)
        assert int(chosen.counts[0, 0]) <= 70 and bool(((chosen.slots >= 0) & (chosen.slots < 210)).all())
        told = (chosen.out[0, 0], chosen.log[0, 0], chosen.wide[0, 0])
        assert where == "keys" or not all(bool(one.isfinite().all()) for one in told)
        for one, other in zip(chosen, expected, strict=True):  # the other head
            torch.testing.assert_close(one[0, 1], other[0, 1], rtol=1e-4, atol=1e-4)


@needed
def test_the_compiler_that_there_is_makes_it_right(monkeypatch: pytest.MonkeyPatch) -> None:
    find, code = machine.checked.__wrapped__, choice_code.written
    found_whatever_torch_is_told(cluster_choice._right)
    monkeypatch.setattr(cluster_choice, "_compiled", cluster_choice._compiled.__wrapped__)
    for one, other in (("fadd <", "fsub <"), ("icmp sge i64", "icmp slt i64"), ("fmul float", "fadd float")):
        monkeypatch.setattr(choice_code, "written", lambda *given, a=one, b=other: code(*given).replace(a, b))
        assert all(find(dtype, cluster_choice._right) == "" for dtype in FORMATS), one


@needed
def test_of_clusters_as_likely_as_each_other_the_first_are_read_until_one_does_not_fit() -> None:
    own = clusters(torch.zeros(1, 5, 16), torch.full((1, 5), 3))
    chosen = Case(torch.zeros(1, 1, 1, 16), torch.zeros(1, 15, 16), own, (0, 0), 8).by(choose)
    assert chosen.slots[0, 0].tolist() == [0, 1, 2, 3, 4, 5, 0, 0] and chosen.counts.tolist() == [[6]]
    assert float(chosen.log) == pytest.approx(float(torch.tensor(9.0).log()))


@needed
@pytest.mark.parametrize("above", [0.0, 60.0, 80.0, 200.0, 1e4])
def test_what_is_left_is_told_however_little_it_is_beside_what_is_read(above: float) -> None:
    """A first cluster far above the others is read: shares of these are too small for numbers, and their masses not."""
    means, spreads = torch.zeros(2, 1, 4, 16).unbind()
    means[0, :, 0] = torch.tensor([above, -2.0, 1.0, 0.5])
    spreads[0, :, 1] = torch.tensor([3.0, 1.0, 0.5, 0.0])
    own = clusters(means, torch.tensor([[5, 3, 4, 2]]), spreads, drawn(1, 4, 16, seed=3))
    rows = torch.zeros(1, 1, 2, 16)
    rows[..., :2] = 1.0
    case = Case(rows, torch.zeros(1, 14, 16), own, (0, 0), 5, scale=1.0)
    found = case.by(choose)
    assert found.counts.tolist() == [[5]]
    agree(found, case, 1e-5)


@needed
def test_the_budget_goes_to_likely_keys_and_not_to_large_clusters() -> None:
    means, rows = torch.zeros(1, 3, 16), torch.zeros(1, 1, 1, 16)
    means[0, :, 0], rows[..., 0] = torch.tensor([1.0, 2.0, 3.0]), 1.0
    own = clusters(means, torch.tensor([[100, 10, 1]]))
    chosen = Case(rows, torch.zeros(1, 111, 16), own, (0, 0), 11, scale=1.0).by(choose)
    assert chosen.slots[0, 0].tolist() == [*range(100, 110), 110] and chosen.counts.tolist() == [[11]]
    assert float(chosen.log) == pytest.approx(float(torch.tensor(100.0).log()) + 1.0, rel=1e-5)  # the large one is left


@needed
def test_a_row_that_the_ends_have_has_less_to_say() -> None:
    """Two rows want a cluster each; one of them looks at the last key all the same."""
    means, keys, rows = torch.zeros(1, 2, 16), torch.zeros(1, 9, 16), torch.zeros(1, 1, 2, 16)
    means[0, 0, 0], means[0, 1, 1], rows[0, 0, 0, 0], rows[0, 0, 1, 1] = 4.0, 3.0, 1.0, 1.0
    own = clusters(means, torch.full((1, 2), 4))
    for much, first in ((0.0, 0), (20.0, 4)):
        keys[0, 8, 0] = much
        chosen = Case(rows, keys, own, (0, 1), 5, scale=1.0).by(choose)
        assert chosen.slots[0, 0].tolist() == [8, *range(first, first + 4)]


@needed
def test_threads_of_ones_own_may_choose_at_once() -> None:
    """Each has a team of its own to wait for."""
    means = drawn(2, 300, 32, seed=0)
    own = clusters(means, torch.full((2, 300), 5), means.abs(), drawn(2, 300, 32, seed=1))
    case = Case(drawn(1, 2, 7, 32, seed=2), drawn(2, 1510, 32, seed=3), own, (4, 6), 400)
    always_the_same(lambda: case.by(choose))


@needed
def test_what_does_not_fit_is_refused() -> None:
    own, rows, keys = (
        clusters(torch.ones(2, 5, 16), torch.ones(2, 5).long()),
        torch.ones(1, 2, 3, 16),
        torch.ones(2, 9, 16),
    )
    fine = (rows, keys, own, 1.0, (1, 2), 4, torch.ones(1, 1, 3, 1))
    expected = choose(*fine)
    for heads in (1, 2):  # one weight for all
        assert torch.equal(choose(*fine[:6], torch.ones(1, heads, 3, 1)).slots, expected.slots)
    wrong: list[dict[int, Any]] = [{2: own._replace(**{name: getattr(own, name)[:, :4]})} for name in ("means", "logs")]
    wrong += [{2: own._replace(sizes=own.sizes.int())}, {2: own._replace(means=own.means.bfloat16())}]
    wrong += [{2: own._replace(centre=own.centre[..., :3])}, {2: own._replace(logs=own.logs.double())}]
    wrong += [{2: own._replace(means=own.means.transpose(0, 1).contiguous().transpose(0, 1))}]
    wrong += [{0: rows[..., :8]}, {0: rows[:, :1]}, {0: rows.to("meta")}, {1: keys.bfloat16()}, {1: keys[..., ::2]}]
    wrong += [
        {1: keys[:1]},
        {1: keys[:, :2]},
        {5: 2},
        {6: torch.ones(1, 1, 2, 1)},
        {6: torch.ones(1, 1, 3, 1).double()},
    ]
    for other in wrong:
        with pytest.raises(ValueError, match="where suits"):
            choose(*(other.get(place, one) for place, one in enumerate(fine)))
