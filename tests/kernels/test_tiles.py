"""Products by tiles: the sums of x rounded to bfloat16, whatever stood where it is packed, beside those of PyTorch."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import made, needed, threads

from longctx.kernels import dots, few_rows, step_code, steps, tiles
from longctx.kernels.steps import Steps

there = pytest.mark.skipif(not tiles.have(), reason="this processor has no tiles of bfloat16, or may not use them")


@needed
@there
@pytest.mark.parametrize("count", [1, 2, 3])
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 50),
    outs=st.sampled_from([16, 48, 160]),
    width=st.sampled_from([32, 96, 416]),
    biased=st.booleans(),
    add=st.booleans(),
    seed=st.integers(0, 999),
)
def test_sums_are_those_of_numbers_rounded_to_bfloat16(
    count: int, rows: int, outs: int, width: int, biased: bool, add: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, old = (torch.randn(rows, size, generator=draw) for size in (width, outs))
    weight = torch.randn(outs, width, generator=draw).bfloat16()
    bias = torch.randn(outs, generator=draw).bfloat16() if biased else None
    with pytest.MonkeyPatch.context() as patch, threads(count):
        patch.setitem(steps._FROM, "tiles", 1)
        found = made(x, weight, bias, old.clone(), add)
    expected = x.bfloat16().double() @ weight.double().t()
    expected = expected + (0.0 if bias is None else bias.double()) + (old.double() if add else 0.0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@needed
@there
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("rows", [4, 16, 21])
def test_rows_are_packed_in_pairs_and_those_that_are_missing_are_zeros(rows: int, count: int) -> None:
    x, width = torch.randn(rows, 96), 96
    room = torch.full((steps.packed(torch.bfloat16, rows, width),), 0xFF, dtype=torch.uint8)
    with threads(count):
        doing = Steps(torch.bfloat16, rows, (width,))
        doing.pack(x, room)
        doing.run()
    groups = -(-rows // 16)
    expected = torch.zeros(groups * 16, width).bfloat16()
    expected[:rows] = x
    expected = expected.view(groups, 16, 3, 16, 2).permute(0, 2, 3, 1, 4)  # sixteens, tiles, pairs, rows
    assert torch.equal(room.view(torch.bfloat16).view(expected.shape), expected)


@needed
@there
def test_few_rows_and_weights_in_no_whole_tiles_are_multiplied_as_they_are() -> None:
    """There x is not rounded: what a product of tiles would give is something else."""
    for rows, outs, width in ((steps._FROM["tiles"] - 1, 48, 96), (9, 21, 96), (9, 48, 80)):
        x, weight = torch.randn(rows, width), torch.randn(outs, width).bfloat16()
        found = made(x, weight, None, torch.empty(rows, outs))
        torch.testing.assert_close(found, few_rows.reference(x, weight), rtol=1e-5, atol=1e-4)
        assert (found - few_rows.reference(x.bfloat16(), weight)).abs().max() > 1e-3


@needed
@there
def test_only_what_was_packed_is_multiplied_so() -> None:
    x, other, weight = torch.randn(9, 64), torch.randn(9, 64), torch.randn(32, 64).bfloat16()
    first, second = torch.empty(9, 32), torch.empty(9, 32)
    doing = Steps(torch.bfloat16, 9, (64,))
    doing.pack(x, torch.empty(steps.packed(torch.bfloat16, 9, 64), dtype=torch.uint8))
    doing.product(x, weight, None, first)
    doing.product(other, weight, None, second)
    doing.run()
    torch.testing.assert_close(first, few_rows.reference(x.bfloat16(), weight), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(second, few_rows.reference(other, weight), rtol=1e-5, atol=1e-4)


@needed
@there
def test_all_wait_for_what_is_packed_and_what_is_made_anew_is_not() -> None:
    x, other, weight = torch.randn(9, 64), torch.randn(9, 64), torch.randn(64, 64).bfloat16()
    doing, made = Steps(torch.bfloat16, 9, (64,)), torch.empty(9, 64)
    doing.pack(x, torch.empty(steps.packed(torch.bfloat16, 9, 64), dtype=torch.uint8))
    assert doing._told[1] == 1
    doing.product(other, weight, None, x)
    doing.wait()
    doing.product(x, weight, None, made)
    doing.run()
    torch.testing.assert_close(made, few_rows.reference(x, weight), rtol=1e-5, atol=1e-3)
    assert (made - few_rows.reference(x.bfloat16(), weight)).abs().max() > 1e-2


@needed
@there
@pytest.mark.parametrize("widths", [(64, 96), (96, 64), (64, 96, 64)])
def test_every_width_has_its_own_products(widths: tuple[int, ...]) -> None:
    doing, expected, made = Steps(torch.bfloat16, 9, widths), list[torch.Tensor](), list[torch.Tensor]()
    for width in widths:
        x, weight = torch.randn(9, width), torch.randn(32, width).bfloat16()
        made.append(torch.empty(9, 32))
        expected.append(few_rows.reference(x.bfloat16(), weight))
        doing.pack(x, torch.empty(steps.packed(torch.bfloat16, 9, width), dtype=torch.uint8))
        doing.product(x, weight, None, made[-1])
    doing.run()
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-3)


@needed
@there
def test_what_is_kept_of_trials_says_whether_there_were_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    found = steps.version(torch.bfloat16, 64)
    monkeypatch.setattr(tiles, "have", lambda: False)
    assert found != steps.version(torch.bfloat16, 64) != ""


@needed
@there
@pytest.mark.parametrize("count", [1, 2])
def test_they_and_the_librarys_own_leave_one_another_alone(count: int) -> None:
    """PyTorch's products in bfloat16 use the same tiles, in another size, and keep what they set them to."""
    with threads(count):
        x, weight = torch.randn(40, 256), torch.randn(512, 256).bfloat16()
        expected = few_rows.reference(x.bfloat16(), weight)
        for rows in (5, 40, 17, 33):
            for _ in range(3):
                theirs = torch.nn.functional.linear(x[:rows].bfloat16(), weight).float()
                ours = few_rows.product(x[:rows], weight)
                torch.testing.assert_close(theirs, expected[:rows], rtol=1e-2, atol=0.2)
                torch.testing.assert_close(ours, expected[:rows], rtol=1e-5, atol=1e-4)


@needed
@there
def test_nothing_is_written_beside_what_is_made_and_packed() -> None:
    guard, rows, outs, width = 64, 9, 48, 96
    room = torch.full((steps.packed(torch.bfloat16, rows, width) + 2 * guard,), 7, dtype=torch.uint8)
    sums = torch.full((rows * outs + 2 * guard,), torch.nan)
    x, weight = torch.randn(rows, width), torch.randn(outs, width).bfloat16()
    doing = Steps(torch.bfloat16, rows, (width,))
    doing.pack(x, room[guard:-guard])
    doing.product(x, weight, None, sums[guard:-guard].view(rows, outs))
    doing.run()
    assert bool((room[:guard] == 7).all()) and bool((room[-guard:] == 7).all())
    assert bool(sums[:guard].isnan().all()) and bool(sums[-guard:].isnan().all())
    assert not bool(sums[guard:-guard].isnan().any())


@needed
@there
def test_what_is_no_number_stays_none() -> None:
    x, weight = torch.ones(9, 64), torch.ones(32, 64).bfloat16()
    x[2, 5], x[3, 7] = torch.nan, torch.inf
    found = few_rows.product(x, weight)
    assert bool(found[2].isnan().all()) and bool((found[3] == torch.inf).all())
    assert bool((found[[0, 1, 4, 5, 6, 7, 8]] == 64).all())


@needed
@pytest.mark.parametrize("refused", [True, False])
def test_without_leave_there_are_none(monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    """Of a system that refuses it, and of a processor that has none, products are what they are everywhere."""
    import llvmlite.binding as llvm

    asked: list[tuple[int, ...]] = []

    class Library:
        def __init__(self, name: object) -> None: ...

        def syscall(self, *given: int) -> int:
            asked.append(given)
            return -1

    has = dict.fromkeys(("amx-tile", "amx-bf16", "avx512f"), refused)
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: has)
    monkeypatch.setattr(tiles.sys, "platform", "linux")  # type: ignore[attr-defined]
    monkeypatch.setattr(tiles.platform, "machine", lambda: "x86_64")  # type: ignore[attr-defined]
    monkeypatch.setattr(ctypes, "CDLL", Library)
    assert tiles.have.__wrapped__() is False  # not what is remembered of this machine
    assert len(asked) == refused


@needed
def test_a_machine_without_them_multiplies_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "have", lambda: False)
    monkeypatch.setattr(dots, "have", lambda: False)
    x, weight = torch.randn(9, 64), torch.randn(32, 64).bfloat16()
    assert steps.packed(torch.bfloat16, 9, 64) == 0
    torch.testing.assert_close(few_rows.product(x, weight), few_rows.reference(x, weight), rtol=1e-5, atol=1e-4)


@needed
@there
def test_a_compiler_that_multiplies_tiles_wrongly_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    written = step_code.written
    assert steps._right(torch.bfloat16)
    monkeypatch.setattr(steps, "_compiled", steps._compiled.__wrapped__)
    monkeypatch.setattr(
        step_code, "written", lambda *given: written(*given).replace("i8 0, i8 4, i8 6", "i8 0, i8 6, i8 4")
    )
    assert not steps._right(torch.bfloat16) and steps._right(torch.float16)
