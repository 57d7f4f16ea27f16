"""The likeliest tokens of logits, against a search that looks at all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx import likeliest as module
from longctx.likeliest import likeliest

pytestmark = pytest.mark.usefixtures("one_thread")
LARGE = 128 * 40 + 37  # groups and a rest


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    vocab=st.sampled_from([1, 7, 127, 128, 129, 128 * 16, 128 * 17, 128 * 17 + 1, LARGE]),
    count=st.integers(1, 20),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    levels=st.sampled_from([2, 9, None]),
    at_once=st.sampled_from([1, 2 * LARGE, 2**19]),
    seed=st.integers(0, 99),
)
def test_they_are_those_of_a_whole_sort(
    rows: int, vocab: int, count: int, dtype: torch.dtype, levels: int | None, at_once: int, seed: int
) -> None:
    drawn = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))
    logits = (drawn if levels is None else (levels * drawn).round().clamp(-levels, levels)).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WIDE", at_once)
        tokens, chances = likeliest(logits, count)
    assert tokens.shape == chances.shape == (rows, min(count, vocab))
    whole = logits.double().softmax(-1).numpy()
    np.testing.assert_allclose(chances, -np.sort(-whole, -1)[:, :count], rtol=1e-4)
    np.testing.assert_allclose(chances, np.take_along_axis(whole, tokens, -1), rtol=1e-4)
    assert all(len(set(row)) == len(row) for row in tokens.tolist()), "each token once"


def test_the_likeliest_of_one_group_and_of_the_rest_are_found() -> None:
    logits = torch.zeros(2, LARGE)
    logits[0, 256:266] = torch.arange(10.0, 20.0)
    logits[1, LARGE - 3 :] = torch.tensor([5.0, 7.0, 6.0])
    tokens, _ = likeliest(logits, 3)
    assert tokens.tolist() == [[265, 264, 263], [LARGE - 2, LARGE - 1, LARGE - 3]]


def test_what_is_not_finite_is_no_chance() -> None:
    logits = torch.zeros(2, LARGE)
    logits[0, 300] = torch.nan
    logits[1, 5] = -torch.inf
    _, chances = likeliest(logits, 4)
    assert not np.isfinite(chances[0]).any() and np.isfinite(chances[1]).all()
