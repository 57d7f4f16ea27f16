"""The kernel for a few rows: the sums of a plain product, for any shape, format and number of threads."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.kernels import few_rows

needed = pytest.mark.skipif(not few_rows.suits(torch.ones(16, 64)), reason="no kernel can be had here")
FORMATS = (torch.float32, torch.bfloat16, torch.float16)


@needed
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", FORMATS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    vectors=st.integers(1, 9),
    out=st.integers(1, 50),
    together=st.sampled_from([1, 2, 4]),
    near=st.integers(1, 3000),
    seed=st.integers(0, 999),
)
def test_every_number_is_that_of_a_plain_product(
    dtype: torch.dtype, threads: int, rows: int, vectors: int, out: int, together: int, near: int, seed: int
) -> None:
    draw, width = torch.Generator().manual_seed(seed), 16 * vectors
    x = torch.randn(rows, width, generator=draw).to(dtype)
    weight = torch.randn(out, width, generator=draw).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(few_rows, "_NEAR", near)
            found = few_rows.product(x, weight, together)
    finally:
        torch.set_num_threads(before)
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
    x = torch.eye(64, dtype=dtype).t()[: len(special)]
    with_nan = few_rows.product(x[:, :].clone(), weight)
    for place, value in enumerate(special):
        own = float(torch.tensor(value).to(dtype))
        found = float(with_nan[place, place])
        assert found == own or found != found and own != own
    assert torch.equal(
        few_rows.product(torch.ones(64, 5, dtype=dtype).t(), torch.ones_like(weight)), torch.full((5, 16), 64.0)
    )


@needed
def test_threads_of_ones_own_may_multiply_at_once() -> None:
    x, weight = torch.randn(4, 256), torch.randn(300, 256).bfloat16()
    expected = few_rows.product(x, weight, 4)
    wrong: list[int] = []

    def work(number: int) -> None:
        if any(not torch.equal(few_rows.product(x, weight, 4), expected) for _ in range(50)):
            wrong.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@needed
def test_a_team_that_is_smaller_than_asked_for_does_the_whole_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where threads are limited, or the caller is itself one of a team."""
    team = few_rows._team()
    if team is None:
        pytest.skip("no threads to ask")
    sizes: list[int] = []

    def smaller(run: object, given: int, threads: int, flags: int) -> None:
        sizes.append(threads)
        team[0](run, given, 1, flags)

    monkeypatch.setattr(few_rows, "_team", lambda: (smaller, *team[1:]))
    x, weight, before = torch.randn(3, 64), torch.randn(40, 64), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = few_rows.product(x, weight)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, few_rows.reference(x, weight))
    assert sizes == [2]


def test_what_it_cannot_multiply_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.ones(16, 64)
    assert not few_rows.suits(weight.double()) and not few_rows.suits(weight.to("meta"))
    assert not few_rows.suits(weight[:, :40].contiguous()) or few_rows._lanes() == 8
    assert not few_rows.suits(weight[:, :37].contiguous()) and not few_rows.suits(torch.ones(64, 16).t())
    monkeypatch.setattr(few_rows, "_installed", lambda: False)
    assert not few_rows.suits(weight)


def test_threads_that_cannot_be_reached_are_done_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(few_rows, "_installed", lambda: True)
    monkeypatch.setattr(few_rows, "_lanes", lambda: 16)
    find = few_rows._team.__wrapped__
    monkeypatch.setattr(few_rows, "_team", find)
    weight, before = torch.ones(16, 64), torch.get_num_threads()
    monkeypatch.setattr(few_rows, "_MAPS", tmp_path / "maps")
    try:
        for text in (None, "", "7f00-7f01 r-xp 0 00:01 9 /a/libgomp.so.1\n7f02-7f03 r-xp 0 00:01 9 /b/libgomp.so.1\n"):
            if text is not None:
                (tmp_path / "maps").write_text(text)
            assert find() is None
            torch.set_num_threads(2)
            assert not few_rows.suits(weight)
            torch.set_num_threads(1)
            assert few_rows.suits(weight)
    finally:
        torch.set_num_threads(before)
