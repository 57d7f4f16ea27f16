"""A few rows by a matrix: the numbers of a linear layer, and which way is found to be the fastest."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from ways import always

from longctx.backend import narrow
from longctx.backend.fused import Fused
from longctx.backend.lean import Lean
from longctx.kernels import few_rows

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.mark.parametrize("way", [narrow._usual, narrow._weights_first, narrow._by_fours, narrow._one_by_one])
@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 70), width=st.integers(1, 40), out=st.integers(1, 40), seed=st.integers(0, 99))
def test_the_product_is_that_of_a_linear_layer(way: narrow.Way, rows: int, width: int, out: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(count, width, generator=draw, dtype=torch.float64) for count in (rows, out))
    torch.testing.assert_close(way(x, weight), F.linear(x, weight), rtol=1e-12, atol=1e-12)
    x, weight, bias = x.float(), weight.float(), torch.randn(out, generator=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(narrow, "_ways", always(way))
        for added in (None, bias):
            found = narrow.product(x, weight, added)
            assert found.shape == (rows, out)
            expected = F.linear(x.double(), weight.double(), None if added is None else added.double())
            torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", [narrow._widened, narrow._widened_rows_first])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 300), width=st.integers(1, 40), out=st.integers(1, 40), block=st.integers(1, 400))
def test_widened_weights_give_each_number_as_near_as_the_format_has_it(
    way: narrow.Way, dtype: torch.dtype, rows: int, width: int, out: int, block: int
) -> None:
    draw = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(count, width, generator=draw).to(dtype) for count in (rows, out))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(narrow, "_BLOCK" if way is narrow._widened else "_SMALL", block)
        patch.setattr(narrow, "_ways", always(way))
        rows = rows if way is narrow._widened else min(rows, 64)
        x = x[:rows]
        assert narrow.wins(min(rows, narrow.MOST), weight)
        bias = 3 * torch.randn(out, generator=draw).to(dtype)
        found = torch.cat([narrow.product(some, weight, bias) for some in torch.split(x, narrow.MOST)])
    assert found.shape == (rows, out) and found.dtype == dtype
    exact = x.double() @ weight.double().t() + bias
    step = torch.finfo(dtype).eps
    # half a step where it is rounded, and what float32 is off by
    assert bool(((found.double() - exact).abs() <= 0.51 * step * exact.abs() + 1e-4).all())


def test_rows_take_the_way_of_the_next_count_that_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def way(count: int) -> narrow.Way:
        return lambda x, weight: asked.append(count) or x @ weight.t()

    monkeypatch.setattr(narrow, "_ways", lambda *given: [way(count) for count in narrow.COUNTS])
    for rows in (1, 3, 5, 17, 64, 65):
        narrow.product(torch.ones(rows, 4), torch.ones(8, 4))
    assert asked == [1, 3, 8, 24, 64], "none of these wins at 65 rows because it does at 64"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_widened_weights_win_with_more_rows_where_they_win_with_those_tried(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrow, "_ways", always(narrow._widened))
    weight = torch.ones(4, 4, dtype=dtype)
    assert [narrow.wins(rows, weight) for rows in (64, 65, narrow.MOST, narrow.MOST + 1)] == [True, True, True, False]
    monkeypatch.setattr(narrow, "_ways", always(narrow._weights_first))
    assert [narrow.wins(rows, weight) for rows in (64, 65)] == [True, False]


def test_once_widened_weights_win_twice_nothing_else_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "suits", lambda weight: False)
    tried: list[tuple[int, int]] = []

    def last(works: Any, margin: float) -> tuple[int, float]:
        tried.append((len(works[0]()), len(works)))
        return len(works) - 1 if tried[-1][0] in (2, 4, 8) else 0, 1.0

    monkeypatch.setattr(narrow, "fastest", last)
    ways, taken = narrow._understood(narrow._tried(torch.bfloat16, 16, 64))
    assert taken == [1.0] * len(narrow.COUNTS)
    assert [rows for rows, ways in tried if ways > 1] == [1, 2, 3, 4, 8], "once may be by chance"
    assert [rows for rows, _ in tried] == list(narrow.COUNTS), "what so many take is found in any case"
    usual, widened = narrow._usual, narrow._widened
    assert ways == [usual, widened, usual] + [widened] * (len(narrow.COUNTS) - 3)


@pytest.mark.parametrize("choice", [0, 1])
def test_a_bias_brings_a_sum_back_into_half_precision(choice: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow, "fastest", lambda works, margin: (min(choice, len(works) - 1), 1.0))
    ways = narrow._understood(narrow._tried(torch.float16, 1, 64))[0]
    monkeypatch.setattr(narrow, "_ways", lambda *given: ways)
    weight, bias = torch.full((1, 64), 32.0).half(), torch.tensor([-60000.0]).half()
    for rows in narrow.COUNTS:  # 67,584 is beyond what the format holds
        found = narrow.product(torch.full((rows, 64), 33.0).half(), weight, bias)
        assert bool((found == 7584).all())


def test_weights_are_tried_by_their_shape_and_format_and_large_ones_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(narrow, "_WEIGHTS", 64)
    monkeypatch.setattr(narrow, "_ways", lambda *given: tried.append(given) or always(narrow._weights_first)(*given))
    assert narrow.wins(2, torch.ones(4, 8)) and narrow.wins(2, torch.ones(400, 8, dtype=torch.bfloat16))
    threads = torch.get_num_threads()
    assert tried == [(torch.float32, 4, 8, threads), (torch.bfloat16, 8, 8, threads)]


def test_another_way_is_taken_for_the_counts_that_win_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [narrow._weights_first if count == 8 else narrow._usual for count in narrow.COUNTS]
    monkeypatch.setattr(narrow, "_ways", lambda *given: ways)
    weight = torch.ones(4, 4, dtype=torch.bfloat16)
    assert [narrow.wins(rows, weight) for rows in (4, 5, 8, 9)] == [False, True, True, False]


def test_nothing_is_tried_for_other_formats_devices_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow, "_ways", lambda *given: pytest.fail("tried"))
    assert not narrow.wins(0, torch.ones(2, 2)) and not narrow.wins(65, torch.ones(2, 2))
    assert not narrow.wins(narrow.MOST + 1, torch.ones(2, 2, dtype=torch.bfloat16))
    assert not narrow.wins(1, torch.ones(2, 2, dtype=torch.float64))
    assert not narrow.wins(1, torch.ones(2, 2, device="meta"))


LAST = {  # the last way that is tried for 12, for 16 and for 64 rows, without the kernel and with it
    (torch.float32, False): (narrow._by_fours, narrow._weights_first, narrow._weights_first),
    (torch.bfloat16, False): (narrow._widened, narrow._widened, narrow._widened),
    (torch.float16, False): (narrow._widened, narrow._widened, narrow._widened),
    (torch.float32, True): (narrow._kernel, narrow._kernel, narrow._weights_first),
    (torch.bfloat16, True): (narrow._kernel, narrow._widened, narrow._widened),
    (torch.float16, True): (narrow._kernel, narrow._widened, narrow._widened),
}


@pytest.mark.parametrize(("dtype", "compiles"), LAST)
def test_the_trial_holds_the_ways_against_each_other_on_the_same_weights(
    dtype: torch.dtype, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[list[torch.Tensor]] = []
    monkeypatch.setattr(few_rows, "suits", lambda weight: compiles and weight.shape == (16, 64))
    monkeypatch.setattr(few_rows, "product", lambda x, weight: few_rows.reference(x, weight))
    monkeypatch.setattr(
        narrow, "fastest", lambda works, margin: held.append([work() for work in works]) or (len(works) - 1, 1.0)
    )
    ways = dict(zip(narrow.COUNTS, narrow._understood(narrow._tried(dtype, 16, 64))[0], strict=True))
    assert (ways[12], ways[16], ways[64]) == LAST[dtype, compiles]
    for rows, made in zip(narrow.COUNTS, held, strict=True):
        assert all(one.shape == (rows, 16) and bool((one == 64).all()) for one in made)
    if compiles:
        library = [narrow._usual] if dtype == torch.float16 else [narrow._usual, narrow._weights_first]
        assert narrow._candidates(1, dtype, True) == (*library, narrow._kernel)
        assert narrow._kernel not in narrow._candidates(33, dtype, True)


def test_what_the_kernel_wins_it_is_given_and_what_it_cannot_have_goes_the_usual_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def last(works: Any, margin: float) -> tuple[int, float]:
        return (len(works) - 1 if len(works[0]()) <= 12 else 0), 1.0

    monkeypatch.setattr(narrow, "fastest", last)
    if not few_rows.suits(torch.ones(16, 64)):
        pytest.skip("no kernel here")
    ways = narrow._understood(narrow._tried(torch.bfloat16, 16, 64))[0]
    assert ways[0] is narrow._kernel and ways[6] is narrow._usual
    monkeypatch.setattr(narrow, "_ways", lambda *given: ways)
    weight, bias = torch.randn(64, 16).bfloat16(), torch.randn(16).bfloat16()
    assert not weight.t().is_contiguous()
    for own in (weight.t().contiguous(), weight.t()):
        for x in (torch.randn(5, 64).bfloat16(), torch.randn(5, 64)):
            found = narrow.product(x, own, bias)
            exact = x.double() @ own.double().t() + bias
            assert found.dtype == x.dtype
            assert bool(((found.double() - exact).abs() <= 0.02 * exact.abs() + 0.05).all())


def test_what_is_kept_says_what_the_kernel_was_compiled_by(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def kept(name: str, about: str, attempt: Any, understood: Any) -> Any:
        said.append(about)
        return understood([("_usual", 1.0)] * len(narrow.COUNTS))

    monkeypatch.setattr(narrow, "kept", kept)
    find = narrow._trial.__wrapped__
    for compiler in ("llvmlite 1", "", "llvmlite 2"):
        monkeypatch.setattr(few_rows, "version", lambda dtype, width, compiler=compiler: compiler)
        find(torch.bfloat16, 16, 64, 2)
    assert len(set(said)) == 3


def test_what_products_take_is_that_of_their_shapes_and_grows_with_weights_tried_in_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows times the weights that are tried, as a thousandth of a second each, tell which shape was asked for."""
    monkeypatch.setattr(narrow, "_WEIGHTS", 2**9)
    monkeypatch.setattr(Fused, "wins", lambda self, rows: False)
    monkeypatch.setattr(
        narrow, "_trial", functools.cache(lambda *kind: ([], [n * kind[1] / 1e3 for n in narrow.COUNTS]))
    )
    assert narrow.seconds(8, torch.ones(20, 16)) == pytest.approx(8 * 20 / 1e3)
    assert narrow.seconds(8, torch.ones(64, 16)) == pytest.approx(8 * 64 / 1e3), "of which 32 rows are tried"
    found = Lean(tiny.model("llama", attention="sdpa"))
    rows = sum(len(part.weight) for layer in found.layers for part in layer.linear.values()) + len(found.head.weight)
    assert found.products() == pytest.approx({n: n * rows / 1e3 for n in narrow.COUNTS})


@pytest.mark.parametrize("out", [5, 896, 32_001, 50_257, 151_936])
@pytest.mark.parametrize("width", [64, 896, 4_864, 2**23])
def test_of_large_weights_a_part_is_tried_that_leaves_as_many_rows_over(out: int, width: int) -> None:
    """Some ways take sixteen rows of weights together, and another way for those that are left, or for all."""
    _, some, same, _ = narrow.shape(torch.empty(out, width, dtype=torch.bfloat16, device="meta"))
    assert same == width and 0 < some <= out and (some * width <= narrow._WEIGHTS or some == 1)
    assert some < 16 or (out - some) % 16 == 0
