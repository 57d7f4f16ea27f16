"""Attention by matrix products: the library's own numbers whatever the blocks, when it is taken, and what it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lean import check
from test_lean import states as read
from torch import Tensor
from torch.nn import functional as F

from longctx.backend import products, trial
from longctx.backend.attention import ROWS, attend
from longctx.backend.passes import Passes
from longctx.backend.rows import Rows

pytestmark = pytest.mark.usefixtures("two_threads")
SHAPES = st.tuples(
    st.integers(1, 3),
    st.sampled_from([(4, 4), (6, 2), (3, 1)]),
    st.integers(2, 19),
    st.integers(0, 9),
    st.integers(0, 99),
)


SMALL = (1, 6, 2, 256, 256, 64, False)  # of a trial


def states(batch: int, heads: tuple[int, int], queries: int, past: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    sizes = ((heads[0], queries), (heads[1], past + queries), (heads[1], past + queries))
    return tuple(torch.randn(batch, *size, 8, generator=draw, dtype=torch.float64) for size in sizes)  # type: ignore[return-value]


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=True)


def causal(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 8), st.integers(1, 400), st.booleans())
def test_blocks_of_any_size_give_the_fused_kernels_numbers(
    shape: tuple[Any, ...], rows: int, scores: int, masked: bool
) -> None:
    query, key, value = states(*shape)
    mask = causal(query.shape[2], key.shape[2])
    if masked:  # the first keys of the first text are padding, as in a batch of unequal texts
        mask = mask.repeat(len(query), 1, 1, 1)
        mask[0, ..., : shape[3]] = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_ROWS", rows)
        patch.setattr(products, "_SCORES", scores)
        found = products.attend(query, key, value, mask if masked else None, 0.3)
    torch.testing.assert_close(found, fused(query, key, value, mask, 0.3), rtol=1e-10, atol=1e-10)


def test_a_mask_of_each_head_is_seen_by_that_head() -> None:
    query, key, value = states(2, (6, 2), 5, 3, 1)
    mask = torch.rand(2, 6, 5, 8, generator=torch.Generator().manual_seed(2)) < 0.7
    mask[..., 0] = True
    found = products.attend(query, key, value, mask, 0.3)
    torch.testing.assert_close(found, fused(query, key, value, mask, 0.3), rtol=1e-10, atol=1e-10)


def test_a_row_that_sees_nothing_stays_finite() -> None:
    query, key, value = states(1, (4, 4), 4, 0, 3)
    assert products.attend(query, key, value, torch.zeros(1, 1, 4, 4, dtype=torch.bool), 0.3).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [30.0, 200.0])
def test_scores_beyond_the_range_of_exponentials_give_the_softmax_all_the_same(size: float, dtype: torch.dtype) -> None:
    """Too large: their exponentials are infinite. Too small: a first row that sees only itself, far below the mean."""
    query, key, value = (x.to(dtype).double() for x in states(1, (4, 2), 6, 0, 7))
    query, key = query * size, key * size
    query[:, :, 0] = -key.repeat_interleave(2, 1)[:, :, 0]
    for mask in (None, causal(6, 6)[None, None]):
        found = products.attend(query.to(dtype), key.to(dtype), value.to(dtype), mask, 1.0)
        assert found.isfinite().all()
        torch.testing.assert_close(
            found[:, :, 0].double(), value.repeat_interleave(2, 1)[:, :, 0], rtol=0.01, atol=0.01
        )
        if dtype == torch.float64:
            torch.testing.assert_close(found, fused(query, key, value, causal(6, 6), 1.0), rtol=1e-10, atol=1e-10)


def test_rows_of_padding_do_not_send_the_others_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = states(2, (4, 2), 5, 0, 8)
    mask = causal(5, 5)[None, None].repeat(2, 1, 1, 1)
    mask[0, ..., :2] = False  # the first two rows see nothing
    sound = products._sound
    found = []
    monkeypatch.setattr(products, "_sound", lambda *given: found.append(sound(*given)) or found[-1])
    products.attend(query, key, value, mask, 0.3)
    products.attend(query * 1e4, key, value, mask, 0.3)
    assert found == [True, False]


def test_what_stands_in_slots_that_no_row_sees_makes_no_difference() -> None:
    """Padding on the left: it must not move the point that keys are rounded about."""
    query, key, value = states(1, (4, 2), 3, 9, 6)
    mask = causal(3, 12)[None, None].clone()
    mask[..., :5] = False
    plain = products.attend(query, key, value, mask, 0.3)
    key[:, :, :5] = 1e30
    torch.testing.assert_close(products.attend(query, key, value, mask, 0.3), plain, rtol=1e-12, atol=1e-12)


def test_a_bias_that_all_keys_share_costs_no_precision() -> None:
    """Scores of a hundred have steps of a half in bfloat16: weights would be off by half, and the bias says nothing."""
    query, key, value = states(1, (4, 2), 64, 0, 4)
    query = query + 2.0
    bias = torch.full((8,), 6.0, dtype=torch.float64)
    exact = fused(query, key, value, causal(64, 64), 1.0)
    half = [x.to(torch.bfloat16) for x in (query, key + bias, value)]
    kept = fused(*(x.double() for x in half), causal(64, 64), 1.0)  # what the rounding of the states alone costs
    found = products.attend(*half, None, 1.0).double()
    lost, floor = (found - kept).norm() / exact.norm(), (kept - exact).norm() / exact.norm()
    assert lost < 0.03 and floor < 0.2


@pytest.mark.parametrize(("ours", "theirs", "expected"), [(1.0, 2.0, True), (1.0, 1.1, False), (2.0, 1.0, False)])
def test_it_is_taken_where_it_wins_by_a_fifth(
    ours: float, theirs: float, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGCTX_CACHE", str(tmp_path))  # nothing was found before
    times = iter((ours, theirs))
    monkeypatch.setattr(trial, "seconds", lambda work: next(times))
    assert products._faster.__wrapped__(torch.bfloat16, SMALL, 1) is expected


def test_it_is_never_asked_of_other_formats_few_rows_other_devices_or_for_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "_faster", lambda dtype, shape, threads: True)
    half = torch.ones(1, 1, 256, 4, dtype=torch.bfloat16)
    assert not products.wins(half, half, False), "a gradient may be wanted"
    with torch.no_grad():
        assert products.wins(half, half, False) and products.wins(half[:, :, :16], half, True)
        assert not products.wins(half[:, :, :15], half, True) and not products.wins(half, half[:, :, :255], False)
        assert not products.wins(half[:, :, :255], half[:, :, :255], False)
        assert not products.wins(half.to("meta"), half.to("meta"), False)
        for other in (half.float(), half.half()):
            assert not products.wins(other, other, False)


def test_the_trial_is_made_for_sizes_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few large products win where many small ones do not: one trial for all sizes was wrong for most of them."""
    asked = []
    monkeypatch.setattr(products, "_faster", lambda dtype, shape, threads: asked.append(shape))
    tried = {
        (1, 511, 511): (1, 256, 256), (1, 5000, 5000): (1, 2048, 2048), (7, 5000, 5000): (4, 1024, 1024),
        (1, 2048, 30_000): (1, 512, 2048), (1, 1000, 1023): (1, 512, 1024), (1, 600, 900): (1, 512, 1024),
        (3, 300, 1023): (4, 256, 512), (9, 25, 600): (4, 16, 512), (1, 86, 600): (1, 64, 512),
        (1, 85, 600): None,
    }  # fmt: skip
    with torch.no_grad():
        for texts, rows, keys in tried:
            query, key = (torch.empty(texts, h, n, 8, dtype=torch.bfloat16) for h, n in ((6, rows), (2, keys)))
            products.wins(query, key, False)
        products.wins(query, key, True)
    expected = [(one[0], 6, 2, one[1], one[2], 8, False) for one in tried.values() if one is not None]
    assert asked == [*expected, (1, 6, 2, 64, 512, 8, True)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(1, 6, 2, 9, 9, 8), (1, 6, 2, 5, 9, 8), (3, 6, 2, 5, 9, 8), (3, 6, 2, 9, 9, 8)])
def test_the_trial_measures_both_ways_to_the_same_numbers(
    sizes: Any, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (*sizes, masked)
    assert products._faster(torch.bfloat16, shape, 2) in (True, False)
    assert 0 < trial.seconds(lambda: torch.ones(3)) < 10
    made: list[Tensor] = []
    monkeypatch.setattr(products, "kept", lambda trial, about, attempt, read: attempt())
    monkeypatch.setattr(products, "faster", lambda *ways: made.extend(way() for way in ways))
    draw = torch.Generator().manual_seed(3)
    monkeypatch.setattr(torch, "ones", lambda *size, **given: torch.randn(*size, generator=draw).to(given["dtype"]))
    with torch.no_grad():
        products._faster.__wrapped__(torch.float32, shape, 2)
    ours, usual = made
    torch.testing.assert_close(usual.reshape(ours.shape), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "seen", "added"])
def test_the_attention_function_takes_it_for_masks_that_say_what_is_seen(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value = states(2, (6, 2), 5, 3, 5)
    seen = causal(5, 8)[None, None]
    mask = {"none": None, "seen": seen, "added": torch.where(seen, 0.5, -1e9).double()}[kind]
    plain = attend(torch.nn.Module(), query, key, value, mask, scaling=0.3)[0]
    taken = []
    monkeypatch.setattr(products, "wins", lambda query, key, masked: True)
    ours = products.attend
    monkeypatch.setattr(products, "attend", lambda *given: taken.append(kind) or ours(*given))
    found = attend(torch.nn.Module(), query, key, value, mask, scaling=0.3)[0]
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-10)
    assert taken == ([] if kind == "added" else [kind])


@pytest.mark.parametrize("kind", ["a piece of a text", "a tree", "a piece within a window", "a tree within a window"])
def test_behind_a_text_it_is_for_pieces_and_not_for_trees(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial is made with rows one behind another; those of a tree are few and see each other by a mask."""
    parents = [row - 1 for row in range(32)] if "tree" not in kind else [(row - 1) // 2 for row in range(32)]
    rows = Rows(parents, 300, [100 if "window" in kind else None], torch.device("cpu"))
    query, key, value = (own.float() for own in states(1, (6, 2), 32, 300, 5))
    expected = fused(query, key, value, rows._made(rows.windows[0], 332), 0.3)
    taken, ours = [], products.attend
    monkeypatch.setattr(products, "wins", lambda query, key, masked: True)
    monkeypatch.setattr(products, "attend", lambda *given: taken.append(kind) or ours(*given))
    layer = torch.nn.Module()
    layer.layer_idx = 0  # type: ignore[assignment]
    found = attend(layer, query, key, value, None, scaling=0.3, **{ROWS: rows})[0]
    torch.testing.assert_close(found.transpose(1, 2), expected, rtol=1e-4, atol=1e-5)
    assert taken == ([] if "tree" in kind else [kind])


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_model_reads_with_it_what_it_reads_without(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(family, "sdpa")
    plain = read(Passes(model, range(3, 40)))
    monkeypatch.setattr(products, "wins", lambda query, key, masked: query.shape[2] > 1)
    check(read(Passes(model, range(3, 40))), plain)


@pytest.mark.parametrize("at_a_time", [1, 100, 2**18])
def test_sums_are_the_same_in_pieces_of_any_size(at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_WIDE", at_a_time)
    weights = torch.rand(3, 7, 33, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    found = products._sums(weights)
    assert found.shape == (3, 7, 1) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), weights.double().sum(-1, keepdim=True), rtol=1e-6, atol=0)
