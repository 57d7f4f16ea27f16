"""Quest: bounds that hold, and pages read by them."""

from __future__ import annotations

import pytest
import torch
from haystacks import SCALE, chosen, haystack, masses, question

from longctx.errors import BadOption
from longctx.kv.quest import Quest


@pytest.mark.parametrize("tokens", [64, 67])
def test_no_key_of_a_page_scores_above_its_bound(tokens: int) -> None:
    layer = haystack(tokens, seed=3)
    asked = question(layer, rows=2, noise=2.0)
    own = Quest(page=8, recent=0).index(layer, 32).tensors
    rows = asked.rows * SCALE
    bounds = torch.maximum(
        rows.unsqueeze(3) * own["least"][None, :, None], rows.unsqueeze(3) * own["greatest"][None, :, None]
    ).sum(-1)
    for at in range(tokens):
        assert (masses(layer, asked)[..., at] <= bounds[..., at // 8] + 1e-4).all()


@pytest.mark.parametrize("at", [0, 17, 40, 199, 250])
def test_a_needle_is_read_with_its_whole_page(at: int) -> None:
    layer = haystack(260, needle=at)
    for tokens in chosen(Quest(budget=48), layer, question(layer))[0]:
        if at < 244:
            assert set(range(at // 16 * 16, min(at // 16 * 16 + 16, 244))) <= tokens
        assert set(range(244, 260)) <= tokens


def test_of_a_last_page_that_is_short_only_what_there_is_is_read() -> None:
    layer = haystack(71, needle=69)
    policy = Quest(budget=24, page=16, recent=0)
    index = policy.index(layer, 24)
    choice = policy.choose(index, question(layer))
    assert choice.counts is not None and choice.counts.tolist() == [[7, 7]]
    assert all(tokens == set(range(64, 71)) for tokens in chosen(policy, layer, question(layer))[0])


def test_options_that_cannot_be() -> None:
    with pytest.raises(BadOption, match="page=0"):
        Quest(page=0)
