"""Whatever is fed, taken back, forked and forgotten: a fork says what a fresh run over the same tokens says."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import longctx.kv
from longctx.errors import CacheError

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.randint(4, 470, (40,), generator=torch.Generator().manual_seed(0)).tolist()
STEPS = st.lists(st.tuples(st.sampled_from(["feed", "crop", "fork", "swap", "rewind"]), st.integers(1, 9)), max_size=12)


@cache
def made(family: str) -> tuple[object, longctx.kv.CompressedContext]:
    model = tiny.model(family, num_hidden_layers=2)
    return model, longctx.kv.compress(model, IDS, "full")


@settings(max_examples=25, deadline=None)
@given(family=st.sampled_from(["llama", "gemma3"]), steps=STEPS)
def test_a_fork_is_a_fresh_run_over_its_tokens(family: str, steps: list[tuple[str, int]]) -> None:
    model, context = made(family)
    with torch.inference_mode(), context.attached(model) as first:
        forks = [(first, [])]
        for step, (kind, count) in enumerate(steps):
            held, tokens = forks[-1]
            if kind == "feed":
                new = [4 + (step * 31 + i * 7) % 460 for i in range(count)]
                model(torch.tensor([new]), past_key_values=held)  # type: ignore[operator]
                tokens += new
            elif kind == "crop":
                try:
                    held.crop(-count)
                except CacheError:  # more than there is, or out of a window's sight: all is as it was
                    assert held.lengths == {40 + len(tokens)}
                else:
                    del tokens[len(tokens) - count :]
            elif kind == "fork":
                forks.append((held.fork(), [*tokens]))
            elif kind == "swap":
                forks.insert(0, forks.pop())
            else:
                held.rewind()
                tokens.clear()
        for held, tokens in forks:
            assert held.lengths == {40 + len(tokens)}
            seen = model(torch.tensor([[9, 8]]), past_key_values=held).logits  # type: ignore[operator]
            expected = model(torch.tensor([[*IDS, *tokens, 9, 8]])).logits[:, -2:]  # type: ignore[operator]
            torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize(("before", "then"), [(1, 3), (3, 1)])
def test_after_a_crop_to_the_context_another_number_of_rows_may_follow(family: str, before: int, then: int) -> None:
    model, context = made(family)
    with torch.inference_mode(), context.attached(model) as held:
        model(torch.full((before, 3), 9), past_key_values=held)  # type: ignore[operator]
        held.crop(-3)
        rows = torch.tensor([[9, 8], [7, 6], [5, 4]])[:then]
        seen = model(rows, past_key_values=held).logits  # type: ignore[operator]
        expected = model(torch.cat((torch.tensor([IDS] * then), rows), 1)).logits[:, -2:]  # type: ignore[operator]
        torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_deep_copy_is_a_fork_that_shares_the_context() -> None:
    """A copy of the cache for each question, as Hugging Face's guide has it, would be another context each time."""
    model, context = made("llama")
    with torch.inference_mode(), context.attached(model) as held:
        model(torch.tensor([[9, 8]]), past_key_values=held)  # type: ignore[operator]
        other = copy.deepcopy(held)
        model(torch.tensor([[7]]), past_key_values=other)  # type: ignore[operator]
        assert held.lengths == {42} and other.lengths == {43} and other.context is held.context
    with pytest.raises(CacheError, match="after its context was closed"):
        other.fork()
