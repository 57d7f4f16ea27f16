"""The kernel for a few rows: the sums of a plain product, for any shape, format and number of threads."""

from __future__ import annotations

import ctypes.util
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import always_the_same, found_whatever_torch_is_told, needed, threads

from longctx.kernels import few_rows, machine, step_code, steps

FORMATS = (torch.float32, torch.bfloat16, torch.float16)


@needed
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", FORMATS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    vectors=st.integers(1, 9),
    out=st.integers(1, 50),
    near=st.integers(1, 3000),
    seed=st.integers(0, 999),
)
def test_every_number_is_that_of_a_plain_product(
    dtype: torch.dtype, count: int, rows: int, vectors: int, out: int, near: int, seed: int
) -> None:
    draw, width = torch.Generator().manual_seed(seed), 16 * vectors
    x = torch.randn(rows, width, generator=draw).to(dtype)
    weight = torch.randn(out, width, generator=draw).to(dtype)
    with pytest.MonkeyPatch.context() as patch, threads(count):
        patch.setattr(steps, "_NEAR", near)
        found = few_rows.product(x, weight)
    assert found.shape == (rows, out) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), x.double() @ weight.double().t(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found, few_rows.reference(x, weight), rtol=1e-5, atol=1e-4)


@needed
@pytest.mark.parametrize("dtype", FORMATS)
def test_rows_need_not_be_contiguous_and_every_number_of_a_format_keeps_its_worth(dtype: torch.dtype) -> None:
    weight = torch.zeros(16, 64, dtype=dtype)
    info = torch.finfo(dtype)
    special = [0.0, 1.0, -1.5, info.max, info.min, info.smallest_normal, torch.inf, -torch.inf, torch.nan]
    weight[range(len(special)), range(len(special))] = torch.tensor(special).to(dtype)
    found = few_rows.product(torch.eye(64, dtype=dtype)[: len(special)], weight)
    for place, value in enumerate(special):
        own = float(torch.tensor(value).to(dtype))
        assert float(found[place, place]) == own or (own != own and bool(found[place, place].isnan()))
    draw = torch.Generator().manual_seed(0)
    x, plain = torch.randn(64, 10, generator=draw).to(dtype).t(), torch.randn(16, 64, generator=draw).to(dtype)
    for rows in (x, x[::2], x[3:]):
        torch.testing.assert_close(few_rows.product(rows, plain), few_rows.reference(rows, plain), rtol=1e-5, atol=1e-4)


@needed
@pytest.mark.parametrize("out", [20, 21])
def test_nothing_is_read_or_written_beside_what_is_given(out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between numbers that are none, weights and rows give clean sums, and what stands about the sums stays."""
    rows, width, guard = 11, 48, 64

    def within(count: int, length: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        room = torch.full((count * length + 2 * guard,), torch.nan, dtype=dtype)
        return room, room[guard:-guard].view(count, length)

    _, x = within(rows, width, torch.float32)
    _, weight = within(out, width, torch.bfloat16)
    room, made = within(rows, out, torch.float32)
    x.normal_()
    weight.normal_()
    empty = torch.empty
    monkeypatch.setattr(few_rows.torch, "empty", lambda *shape, **given: made)
    found = few_rows.product(x, weight)
    monkeypatch.setattr(few_rows.torch, "empty", empty)
    assert found is made
    torch.testing.assert_close(found, few_rows.reference(x, weight), rtol=1e-5, atol=1e-4)
    assert bool(room[:guard].isnan().all()) and bool(room[-guard:].isnan().all())


@needed
def test_threads_of_ones_own_may_multiply_at_once() -> None:
    x, weight = torch.randn(4, 256), torch.randn(300, 256).bfloat16()
    always_the_same(lambda: [few_rows.product(x, weight)])


@needed
def test_a_team_that_is_smaller_than_asked_for_does_the_whole_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where threads are limited, or the caller is itself one of a team."""
    team = machine.team()
    if team is None:
        pytest.skip("no threads to ask")
    sizes: list[int] = []

    def smaller(run: object, given: int, threads: int, flags: int) -> None:
        sizes.append(threads)
        team[0](run, given, 1, flags)

    x, weight, before = torch.randn(3, 64), torch.randn(40, 64), torch.get_num_threads()
    assert few_rows.suits(weight)  # which runs the kernel too, where it is the first to ask
    monkeypatch.setattr(machine, "team", lambda: (smaller, *team[1:]))
    torch.set_num_threads(2)
    try:
        found = few_rows.product(x, weight)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, few_rows.reference(x, weight))
    assert sizes == [2]


@needed
def test_what_it_cannot_multiply_it_refuses() -> None:
    weight = torch.ones(16, 64)
    lanes = machine.lanes()
    for other in (weight.double(), weight.to("meta"), weight.t()[:16], torch.ones(16, lanes + 1), torch.ones(16, 7)):
        assert not few_rows.suits(other)
        with pytest.raises(ValueError, match="on a CPU, where suits"):
            few_rows.product(torch.ones(2, other.shape[1]), other)
    for x in (torch.ones(2, 32), torch.ones(64), torch.ones(1, 2, 64), torch.ones(2, 64, device="meta")):
        with pytest.raises(ValueError, match="rows as wide as they are"):
            few_rows.product(x, weight)


@needed
def test_a_default_device_changes_nothing() -> None:
    x, weight = torch.randn(3, 64), torch.randn(20, 64)
    with torch.device("meta"):
        found = few_rows.product(x, weight)
    assert torch.equal(found, few_rows.product(x, weight))


def test_without_a_compiler_that_works_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    find = machine.checked.__wrapped__
    monkeypatch.setattr(machine, "checked", find)
    monkeypatch.setattr(machine, "compiler", machine.compiler.__wrapped__)
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    assert find(torch.float32, steps._right) == "" and not few_rows.suits(torch.ones(16, 64))


@needed
def test_a_compiler_that_multiplies_wrongly_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    find, code = machine.checked.__wrapped__, step_code.written
    found_whatever_torch_is_told(steps._right)
    monkeypatch.setattr(steps, "_compiled", steps._compiled.__wrapped__)
    monkeypatch.setattr(step_code, "written", lambda *given: code(*given).replace("(float 0.0,", "(float 1.0,"))
    assert find(torch.float32, steps._right) == ""


@needed
def test_threads_that_cannot_be_reached_are_done_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = machine.team.__wrapped__
    monkeypatch.setattr(machine, "team", find)
    weight, before = torch.ones(16, 64), torch.get_num_threads()
    (tmp_path / "torn.so").write_bytes(b"no library")
    try:
        for path in (tmp_path / "missing.so", tmp_path / "torn.so", ctypes.util.find_library("m") or "libm.so.6"):
            monkeypatch.setattr(machine, "_TORCH", path)
            torch.set_num_threads(2)
            assert find() is None and not few_rows.suits(weight)
            torch.set_num_threads(1)
            assert few_rows.suits(weight)
    finally:
        torch.set_num_threads(before)
