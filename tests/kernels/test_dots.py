"""Products by dots: the sums of x rounded to bfloat16, whatever stood where it is packed, beside those of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import made, needed, threads

from longctx.kernels import dots, few_rows, step_code, steps, tiles
from longctx.kernels.steps import Steps

there = pytest.mark.skipif(not dots._processor(), reason="this processor has no dot products of bfloat16")


@pytest.fixture(scope="module", autouse=True)
def without_tiles() -> Iterator[None]:
    """Which do more at once, so that no dots are had beside them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "have", lambda: False)
        yield


@needed
@there
@pytest.mark.parametrize("count", [1, 2, 3])
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(2, 50),
    outs=st.integers(1, 50),
    width=st.sampled_from([32, 96, 256, 416]),
    near=st.integers(1, 3000),
    biased=st.booleans(),
    add=st.booleans(),
    seed=st.integers(0, 999),
)
def test_sums_are_those_of_numbers_rounded_to_bfloat16(
    count: int, rows: int, outs: int, width: int, near: int, biased: bool, add: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, old = (torch.randn(rows, size, generator=draw) for size in (width, outs))
    weight = torch.randn(outs, width, generator=draw).bfloat16()
    bias = torch.randn(outs, generator=draw).bfloat16() if biased else None
    with pytest.MonkeyPatch.context() as patch, threads(count):
        patch.setattr(steps, "_NEAR", near)
        found = made(x, weight, bias, old.clone(), add)
    expected = x.bfloat16().double() @ weight.double().t()
    expected = expected + (0.0 if bias is None else bias.double()) + (old.double() if add else 0.0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@needed
@there
@pytest.mark.parametrize("count", [1, 2, 3])
def test_rows_are_packed_as_they_stand(count: int) -> None:
    x, width = torch.randn(7, 96), 96
    room = torch.full((steps.packed(torch.bfloat16, 7, width),), 0xFF, dtype=torch.uint8)
    with threads(count):
        doing = Steps(torch.bfloat16, 7, (width,))
        doing.pack(x, room)
        doing.run()
    assert torch.equal(room.view(torch.bfloat16).view(7, width), x.bfloat16())


@needed
@there
def test_one_row_and_weights_in_no_whole_vectors_are_multiplied_as_they_are() -> None:
    """There x is not rounded: what a product of dots would give is something else."""
    for rows, width in ((steps._FROM["dots"] - 1, 96), (9, 80)):
        x, weight = torch.randn(rows, width), torch.randn(48, width).bfloat16()
        found = made(x, weight, None, torch.empty(rows, 48))
        torch.testing.assert_close(found, few_rows.reference(x, weight), rtol=1e-5, atol=1e-4)
        assert (found - few_rows.reference(x.bfloat16(), weight)).abs().max() > 1e-3


@needed
@there
@pytest.mark.parametrize("widths", [(64, 96), (96, 64), (64, 96, 64)])
def test_only_what_was_packed_is_multiplied_so_and_every_width_has_its_own_products(widths: tuple[int, ...]) -> None:
    doing, expected, found = Steps(torch.bfloat16, 9, widths), list[torch.Tensor](), list[torch.Tensor]()
    for width in widths:
        x, other, weight = torch.randn(9, width), torch.randn(9, width), torch.randn(33, width).bfloat16()
        found += [torch.empty(9, 33), torch.empty(9, 33)]
        expected += [few_rows.reference(x.bfloat16(), weight), few_rows.reference(other, weight)]
        doing.pack(x, torch.empty(steps.packed(torch.bfloat16, 9, width), dtype=torch.uint8))
        assert doing._told[1 - step_code.FIELDS] == 1, "all wait for what is packed"
        doing.product(x, weight, None, found[-2])
        doing.product(other, weight, None, found[-1])
    doing.run()
    for one, their in zip(found, expected, strict=True):
        torch.testing.assert_close(one, their, rtol=1e-5, atol=1e-4)


@needed
@there
def test_what_is_kept_of_trials_says_whether_there_were_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    found = steps.version(torch.bfloat16, 64)
    assert found.endswith(" with dots") and "dots" not in steps.version(torch.float32, 64)
    monkeypatch.setattr(dots, "have", lambda: False)
    assert found != steps.version(torch.bfloat16, 64) != ""


@needed
@there
def test_nothing_is_read_or_written_beside_what_is_given() -> None:
    guard, rows, outs, width = 64, 11, 21, 96
    room = torch.full((steps.packed(torch.bfloat16, rows, width) + 2 * guard,), 0xFF, dtype=torch.uint8)
    sums, given = (torch.full((size + 2 * guard,), torch.nan) for size in (rows * outs, rows * width))
    numbers = torch.full((outs * width + 2 * guard,), torch.nan, dtype=torch.bfloat16)
    x, weight = given[guard:-guard].view(rows, width).normal_(), numbers[guard:-guard].view(outs, width).normal_()
    doing = Steps(torch.bfloat16, rows, (width,))
    doing.pack(x, room[guard:-guard])
    doing.product(x, weight, None, sums[guard:-guard].view(rows, outs))
    doing.run()
    assert bool((room[:guard] == 0xFF).all()) and bool((room[-guard:] == 0xFF).all())
    assert bool(sums[:guard].isnan().all()) and bool(sums[-guard:].isnan().all())
    expected = few_rows.reference(x.bfloat16(), weight)
    torch.testing.assert_close(sums[guard:-guard].view(rows, outs), expected, rtol=1e-5, atol=1e-4)


@needed
@there
def test_what_is_no_number_stays_none() -> None:
    x, weight = torch.ones(9, 64), torch.ones(32, 64).bfloat16()
    x[2, 5], x[3, 7] = torch.nan, torch.inf
    found = few_rows.product(x, weight)
    assert bool(found[2].isnan().all()) and bool((found[3] == torch.inf).all())
    assert bool((found[[0, 1, 4, 5, 6, 7, 8]] == 64).all())


@needed
@there
def test_a_compiler_that_multiplies_dots_wrongly_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    written = step_code.written
    assert steps._right(torch.bfloat16)
    monkeypatch.setattr(steps, "_compiled", steps._compiled.__wrapped__)
    seen = "= call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %"

    def wrong(*given: object) -> str:  # packed numbers are read from other places
        code = written(*given)  # type: ignore[arg-type]
        assert seen in code or given[0] != "i16"
        return code.replace("getelementptr i16, ptr %x, i64", "getelementptr i8, ptr %x, i64")

    monkeypatch.setattr(step_code, "written", wrong)
    assert not steps._right(torch.bfloat16) and steps._right(torch.float16)


@needed
@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("tiled", [True, False])
def test_a_processor_without_them_or_with_tiles_has_none(
    has: bool, tiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llvmlite.binding as llvm

    monkeypatch.setattr(dots.platform, "machine", lambda: "x86_64")  # type: ignore[attr-defined]
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: {"avx512f": True, "avx512bf16": has})
    monkeypatch.setattr(dots, "_processor", dots._processor.__wrapped__)  # not what is remembered of this machine
    monkeypatch.setattr(tiles, "have", lambda: tiled)
    assert dots.have() is (has and not tiled)
