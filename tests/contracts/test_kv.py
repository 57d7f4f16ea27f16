"""What holds for every KV policy, whoever wrote it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import tiny
import torch
from haystacks import chosen, haystack, question
from hypothesis import given, settings
from hypothesis import strategies as st

import longctx.kv
from longctx import plugins
from longctx.backend import bounded, compressing, growing
from longctx.backend.attaching import attached
from longctx.backend.bounded import BoundedCache
from longctx.errors import BadOption
from longctx.kv.longheads import LongHeads
from longctx.kv.squeezed import Squeezed

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = plugins.names("kv")
SMALL: dict[str, dict[str, Any]] = {  # options for contexts of tens of tokens
    "lm_infinite": {"sinks": 2, "window": 8},
    "longheads": {"window": 4},
    "quest": {"page": 3, "recent": 4},
    "random": {"sinks": 2, "recent": 4},
    "snapkv": {"window": 4},
    "squeezed": {"sinks": 2, "recent": 4, "clusters": 0.2},
}
IDS = torch.randint(4, 470, (1, 60), generator=torch.Generator().manual_seed(1))
CONTEXT = 48


def made(name: str, **options: Any) -> Any:
    return plugins.plugin("kv", name)(**SMALL.get(name, {}), **options)


def choosing() -> list[str]:
    return [name for name in NAMES if not made(name).lossless]


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_is_frozen_and_its_options_have_defaults(name: str) -> None:
    policy = plugins.load("kv", name)
    assert dataclasses.is_dataclass(policy)
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError, TypeError)):
        policy.budget = 3
    assert isinstance(policy.lossless, bool) and isinstance(policy.grows, bool) and policy.window >= 0


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(tokens=st.integers(30, 90), budget=st.integers(16, 40), rows=st.integers(1, 3), batch=st.integers(1, 2))
def test_never_more_than_the_budget_is_read(name: str, tokens: int, budget: int, rows: int, batch: int) -> None:
    options = {} if made(name).lossless else {"budget": budget}
    policy = made(name, **options)
    layer = haystack(tokens, seed=tokens, window=tokens if policy.grows else policy.window)
    if policy.slots(tokens) >= tokens:
        return
    limit = tokens if policy.lossless else budget
    for row in chosen(policy, layer, question(layer, rows, batch, seed=budget)):
        for head in row:
            assert 0 < len(head) <= limit
            assert head <= set(range(tokens))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_everything_selected_is_full_attention(name: str, family: str) -> None:
    """The policy itself is asked with a budget of the whole context; the door would have put ``full`` in its place."""
    model = tiny.model(family)
    policy = dataclasses.replace(made(name), **whole(name))
    ids = IDS[0, :CONTEXT].tolist()
    if policy.grows:
        context = growing.grow(model, ids, policy, CONTEXT)
    else:
        layers, queries = compressing.read(model, ids, policy.window, 16)
        context = compressing.indexed(model, layers, queries, ids, policy, CONTEXT)
    with torch.inference_mode(), attached(model):
        expected = model(IDS).logits[:, CONTEXT:]
        seen = model(IDS[:, CONTEXT:], past_key_values=BoundedCache(context)).logits
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_rows_choose_as_if_each_came_alone(name: str, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("qwen2")
    options = {} if made(name).lossless else {"budget": 24}
    context = longctx.kv.compress(model, IDS[:, :CONTEXT], made(name, **options))
    rows = torch.randint(4, 470, (2, 150), generator=torch.Generator().manual_seed(2))
    seen = torch.ones(2, CONTEXT + 150, dtype=torch.long)
    if padded:  # within the first block, over the end of it, and at the end
        seen[0, CONTEXT + 3 : CONTEXT + 9] = seen[1, CONTEXT + 60 : CONTEXT + 70] = seen[1, -4:] = 0
    said = []
    shares = []
    for most in (1, 2, 4):
        monkeypatch.setattr(bounded, "together", lambda *asked, most=most: most)
        with torch.inference_mode(), context.attached(model, audit_every=1) as cache:
            said.append(model(rows, attention_mask=seen, past_key_values=cache).logits[seen[:, CONTEXT:] > 0])
            shares.append(cache.report())
    torch.testing.assert_close(said[2], said[0], rtol=1e-4, atol=1e-4 * float(said[0].abs().max()))
    for report in shares[1:]:  # a block counts as much as one that came alone
        assert report.read_keys == pytest.approx(shares[0].read_keys)
        for name in ("unread_share", "unread_bound", "true_unread_share", "above_bound"):
            assert getattr(report, name) == pytest.approx(getattr(shares[0], name), abs=1e-4)
    torch.testing.assert_close(said[1], said[0], rtol=1e-4, atol=1e-4 * float(said[0].abs().max()))


def whole(name: str) -> dict[str, Any]:
    return {"squeezed": {"mass": 1.0}, "lm_infinite": {"ceiling": 10_000}}.get(name, {})


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_context_says_what_the_one_in_memory_says(name: str, tmp_path: Any) -> None:
    model = tiny.model("qwen2")
    options = {} if made(name).lossless else {"budget": 20}
    context = longctx.kv.compress(model, IDS[:, :CONTEXT], made(name, **options))
    context.save(tmp_path / "context")
    loaded = longctx.kv.load(tmp_path / "context", model)
    assert (loaded.policy, loaded.tokens, loaded.nbytes) == (context.policy, context.tokens, context.nbytes)
    said = []
    for one in (context, loaded):
        with torch.inference_mode(), one.attached(model) as cache:
            said.append(model(IDS[:, CONTEXT:], past_key_values=cache).logits)
    assert torch.equal(*said)


@pytest.mark.parametrize("name", choosing())
def test_impossible_budgets_are_refused_with_numbers(name: str) -> None:
    policy = plugins.plugin("kv", name)
    with pytest.raises(BadOption, match="budget=9 and keep=0.5"):
        policy(budget=9, keep=0.5)
    with pytest.raises(BadOption, match="keep=1.5"):
        policy(budget=None, keep=1.5)
    with pytest.raises(BadOption, match="budget=0"):
        policy(budget=0)
    assert policy(budget=None, keep=0.5).slots(10_000) == 5_000
    assert policy(budget=900).slots(10_000) == 900
    assert policy(budget=900).slots(600) == 600


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (Squeezed(mode="papr"), "mode='papr' is not one of top-p, paper"),  # type: ignore[arg-type]
        (LongHeads(by="page"), "by='page' is not one of pages, outputs"),  # type: ignore[arg-type]
    ],
)
def test_a_word_that_no_option_takes_is_refused_in_python_too(policy: Any, said: str) -> None:
    with pytest.raises(BadOption, match=said):
        longctx.kv.compress(tiny.model("qwen2"), IDS, policy)


@pytest.mark.parametrize("name", ["random", "oracle", "squeezed", "quest"])
@pytest.mark.parametrize("end", ["sinks", "recent"])
def test_less_than_no_tokens_cannot_always_be_read(name: str, end: str) -> None:
    with pytest.raises(BadOption, match=f"{end}=-1"):
        plugins.plugin("kv", name)(budget=8, **{end: -1})


@pytest.mark.parametrize("name", sorted({*choosing()} - {"oracle"}))
def test_a_budget_must_pass_what_is_always_read(name: str) -> None:
    with pytest.raises(BadOption, match="always read"):
        made(name, budget=2).slots(1000)


def leaves_a_choice(name: str, tokens: int, count: int) -> bool:
    """Whether a budget of ``count`` slots is taken for so many tokens; what a share comes to is held against it."""
    try:
        made(name, budget=count).slots(tokens)
    except BadOption:
        return False
    return True


@pytest.mark.parametrize("keep", [0.05, 0.07, 0.1, 0.125, 0.3333, 1.0])
@pytest.mark.parametrize("name", choosing())
def test_a_share_that_leaves_no_choice_reads_everything_and_says_from_where_on_it_would(name: str, keep: float) -> None:
    """What it says is held against every length from one token on, and against budgets of so many slots."""
    policy = made(name, keep=keep)
    too_short = [n for n in range(1, 600) if not leaves_a_choice(name, n, math.ceil(keep * n))]
    assert [n for n in range(1, 600) if policy.shortfall(n)] == too_short
    for tokens in too_short:
        said = policy.shortfall(tokens)
        count = math.ceil(keep * tokens)
        assert policy.slots(tokens) == tokens
        assert f"{name}: keep={keep} is a budget of {count} slots of {tokens} tokens, not above the " in said
        assert f"worth it from {too_short[-1] + 1} tokens on" in said
    assert name == "oracle" or keep == 1 or len(too_short) > 2


@pytest.mark.parametrize("keep", [1e-9, 1e-19, 5e-324])
def test_a_share_of_next_to_nothing_is_said_like_any_other(keep: float) -> None:
    assert plugins.plugin("kv", "squeezed")(keep=keep).slots(1000) == 1000
    assert "not above the 132" in plugins.plugin("kv", "squeezed")(keep=keep).shortfall(1000)


def test_a_default_share_below_what_is_always_read_is_a_share_too() -> None:
    policy = plugins.plugin("kv", "squeezed")(recent=1000)
    assert policy.slots(3000) == 3000 and "at least 512 slots) is a budget of 512 slots" in policy.shortfall(3000)
    first = min(n for n in range(3000, 10_000) if not policy.shortfall(n))
    assert f"from {first:,} tokens on" in policy.shortfall(3000) and policy.slots(first) == 1005
    with pytest.raises(BadOption, match="budget of 2048 slots"):  # a count of its own, and no share
        plugins.plugin("kv", "longheads")(window=1024).slots(20_000)


@pytest.mark.parametrize("name", sorted({*choosing()} - {"oracle"}))
def test_a_context_that_a_share_leaves_no_choice_of_is_full_attention_with_a_warning(name: str) -> None:
    model = tiny.model("llama")
    policy = made(name, keep=0.02)
    context = longctx.kv.compress(model, IDS[:, :CONTEXT], policy)
    assert context.policy.lossless and context.warnings == (policy.shortfall(CONTEXT),)
    with torch.inference_mode():
        expected = model(IDS).logits[:, CONTEXT:]
        with context.attached(model) as cache:
            seen = model(IDS[:, CONTEXT:], past_key_values=cache).logits
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    read = longctx.kv.read(model, IDS[:, :CONTEXT]).compress(policy)
    assert read.policy.lossless and read.warnings == context.warnings


@pytest.mark.parametrize("name", choosing())
def test_the_bytes_of_an_index_are_planned(name: str) -> None:
    """As ``longctx plan`` says them: keys, values and index of every layer, within a tenth."""
    model = tiny.model("llama")
    ids = torch.randint(4, 470, (1, 400), generator=torch.Generator().manual_seed(2))
    policy = made(name, budget=100)
    context = longctx.kv.compress(model, ids, policy)
    planned = 4 * (2 * 2 * 400 * 16 * 4 + policy.index_bytes(400, 4, 2, 16, 4))
    assert context.nbytes == pytest.approx(planned, rel=0.1)
