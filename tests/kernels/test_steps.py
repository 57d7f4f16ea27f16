"""Steps of a layer by the kernel: the numbers of operations on tensors, in any format, on any number of threads."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import needed, threads

from longctx.kernels import machine, steps
from longctx.kernels.steps import Steps

FORMATS = (torch.float32, torch.bfloat16, torch.float16)
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()


@needed
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", FORMATS)
@settings(max_examples=25, deadline=None)
@given(
    texts=st.integers(1, 3),
    tokens=st.integers(1, 7),
    heads=st.integers(1, 3),
    width=st.sampled_from([16, 48, 80]),
    inner=st.sampled_from([32, 112]),
    biased=st.booleans(),
    near=st.sampled_from([1, 300, 1000, 2**17]),
    seed=st.integers(0, 999),
)
def test_steps_in_a_row_give_what_operations_on_tensors_give(
    dtype: torch.dtype, count: int, texts: int, tokens: int, heads: int, width: int, inner: int, biased: bool,
    near: int, seed: int,
) -> None:  # fmt: skip
    """A product is added, the sum is normed, multiplied, its heads are normed and rotated: as in a layer."""
    draw, rows, dim = torch.Generator().manual_seed(seed), texts * tokens, 32

    def drawn(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    y, x = drawn(rows, inner, dtype=torch.float32), drawn(rows, width, dtype=torch.float32)
    down, bias, norm = drawn(width, inner), drawn(width) if biased else None, drawn(width)
    query, head_norm = drawn(heads * dim, width), drawn(dim)
    odd, odd_bias = drawn(2 * heads + 1, width), drawn(2 * heads + 1) if biased else None
    cos, sin = drawn(2, rows, dim, dtype=torch.float32)
    before = x.clone()
    h, q, left = torch.empty(rows, width), torch.empty(rows, heads * dim), torch.empty(rows, 2 * heads + 1)
    turned, laid = (torch.empty(texts, heads, tokens, dim, dtype=dtype) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, threads(count):
        patch.setattr(steps, "_NEAR", near)
        doing = Steps(dtype, rows, (inner, width))
        doing.product(y, down, bias, x, add=True)
        doing.wait()
        doing.norm(x, norm, 1e-5, h)
        doing.wait()
        doing.product(h, query, None, q)
        doing.product(h, odd, odd_bias, left)
        doing.wait()
        doing.norm(q, head_norm, 1e-6, q, heads)
        doing.wait()
        places = doing.turn(q, cos, sin, turned.shape), doing.lay(q, laid.shape)
        for place, into in zip(places, (turned, laid), strict=True):
            doing.point(place, into)
        doing.run()
        first = turned.clone()
        x.copy_(before)
        doing.run()  # as often as one likes
    assert torch.equal(first, turned)
    added = 0.0 if bias is None else bias.double()
    total = before.double() + y.double() @ down.double().t() + added
    torch.testing.assert_close(x.double(), total, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(h.double(), normed(x, norm, 1e-5), rtol=1e-5, atol=1e-5)
    more = 0.0 if odd_bias is None else odd_bias.double()
    torch.testing.assert_close(left.double(), h.double() @ odd.double().t() + more, rtol=1e-5, atol=1e-4)
    states = normed((h.double() @ query.double().t()).view(texts, tokens, heads, dim), head_norm, 1e-6)
    one, other = states.chunk(2, -1)
    by = [turn.double().view(texts, tokens, 1, dim) for turn in (cos, sin)]
    rotated = states * by[0] + torch.cat((-other, one), -1) * by[1]
    for found, expected in ((turned, rotated), (laid, states)):
        torch.testing.assert_close(found.double(), expected.transpose(1, 2), rtol=CLOSE[dtype], atol=CLOSE[dtype])


@needed
@pytest.mark.parametrize("dtype", FORMATS)
def test_every_number_is_rounded_as_torch_rounds_it(dtype: torch.dtype) -> None:
    """To the nearest of the format and of two the even one, what is too large to infinity, and none to none."""
    bits = torch.arange(0, 2**32, 65521, dtype=torch.int64)
    ties = (torch.arange(0, 2**16, dtype=torch.int64) << 16) + 0x8000
    x = torch.cat((bits, ties)).sub(2**31).to(torch.int32).view(torch.float32)
    x = torch.cat((torch.tensor([torch.inf, -torch.inf, 65519.0, 65520.0]), x))
    x = x[: len(x) // 64 * 64].view(-1, 64).contiguous()
    into = torch.empty(1, 1, len(x), 64, dtype=dtype)
    doing = Steps(dtype, len(x), ())
    doing.point(doing.lay(x, into.shape), into)
    doing.run()
    assert bool(x.isnan().any()) and bool(x.isinf().any())
    torch.testing.assert_close(into[0, 0], x.to(dtype), rtol=0, atol=0, equal_nan=True)


@needed
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_gates_are_those_of_silu(dtype: torch.dtype, count: int) -> None:
    """Whatever the format of weights is; what is no number stays none, and of what is infinite there is no number."""
    edges = torch.tensor([0.0, -1e37, 1e37, -1e30, 1e-40, torch.nan, torch.inf, -torch.inf])
    gate = torch.cat((torch.linspace(-100, 100, 1016), edges)).repeat(3, 1) * torch.tensor([[1.0], [0.01], [-1.0]])
    up, made = torch.randn(3, 1024), torch.empty(3, 1024)
    with threads(count):
        doing = Steps(dtype, 3, ())
        doing.gate(gate, up, made)
        doing.run()
    expected = torch.nn.functional.silu(gate.double()) * up
    fine = gate.isfinite()
    torch.testing.assert_close(made.double()[fine], expected[fine], rtol=1e-6, atol=1e-30)
    assert not bool(made[~fine].isfinite().any()) and bool((~fine).sum() == 9)


@needed
def test_there_may_be_more_threads_than_gates() -> None:
    gate, up, room = torch.randn(1, 16), torch.randn(1, 16), torch.full((3, 16), torch.nan)
    with threads(3):
        doing = Steps(torch.float32, 1, ())
        doing.gate(gate, up, room[1:2])
        doing.run()
    torch.testing.assert_close(room[1:2], torch.nn.functional.silu(gate) * up)
    assert bool(room[::2].isnan().all())


@needed
@pytest.mark.parametrize("count", [1, 2, 3])
def test_nothing_is_written_beside_what_is_made(count: int) -> None:
    rows, heads, dim, guard, drawn = 3, 2, 32, 64, torch.randn(3, 64)

    def within(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        room = torch.full((torch.Size(shape).numel() + 2 * guard,), torch.nan)
        return room, room[guard:-guard].view(shape)

    shapes = ((rows, 64), (rows, 21), (1, heads, rows, dim), (1, heads, rows, dim))
    rooms, made = zip(*(within(*shape) for shape in shapes), strict=True)
    h, sums, turned, laid = made
    weight, norm = within(21, 64)[1].normal_(), within(64)[1].fill_(1.0)
    cos, sin = (within(rows, dim)[1].normal_() for _ in range(2))
    with threads(count):
        doing = Steps(torch.float32, rows, (64,))
        doing.norm(drawn, norm, 1e-6, h)
        doing.wait()
        doing.product(h, weight, None, sums)
        doing.point(doing.turn(h, cos, sin, turned.shape), turned)
        doing.point(doing.lay(h, laid.shape), laid)
        doing.run()
    assert all(bool(one.isfinite().all()) for one in made)
    assert all(bool(room[:guard].isnan().all()) and bool(room[-guard:].isnan().all()) for room in rooms)


@needed
def test_all_threads_meet_behind_every_step_that_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    team = machine.team()
    if team is None:
        pytest.skip("no threads to ask")
    met: list[int] = []
    barrier = ctypes.CFUNCTYPE(None)(team[3])

    @ctypes.CFUNCTYPE(None)
    def counted() -> None:
        met.append(1)
        barrier()

    address = ctypes.cast(counted, ctypes.c_void_p).value
    monkeypatch.setattr(machine, "team", lambda: (*team[:3], address))
    x, made, norm = torch.randn(4, 64), torch.zeros(4, 64), torch.ones(64)
    for count, expected in ((2, 2 * 2), (1, 0)):
        with threads(count):
            doing = Steps(torch.float32, 4, ())
            doing.norm(x, norm, 1e-6, made)
            doing.wait()
            doing.norm(made, norm, 1e-6, made)
            doing.norm(made, norm, 1e-6, made)
            doing.wait()
            doing.run()
        assert len(met) == expected
        met.clear()


@needed
def test_a_team_that_is_smaller_than_asked_for_does_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    team = machine.team()
    if team is None:
        pytest.skip("no threads to ask")
    monkeypatch.setattr(
        machine, "team", lambda: (lambda run, given, count, flags: team[0](run, given, 1, 0), *team[1:])
    )
    x, made = torch.randn(5, 64), torch.zeros(5, 64)
    with threads(3):
        doing = Steps(torch.float32, 5, ())
        doing.norm(x, torch.ones(64), 1e-6, made)
        doing.wait()
        doing.run()
    torch.testing.assert_close(made.double(), normed(x, torch.ones(64), 1e-6), rtol=1e-5, atol=1e-5)
