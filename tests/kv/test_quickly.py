"""The choice of clusters by kernels: what the same policy chooses on tensors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from haystacks import GROUPS, KV_HEADS, haystack, put, question, read
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import needed

from longctx.kernels import choice_code, cluster_choice, machine
from longctx.keys import Asked, Choice, Index
from longctx.kv import _quickly
from longctx.kv.squeezed import Squeezed


def both(policy: Squeezed, index: Index, asked: Asked) -> tuple[Choice, Choice]:
    """What is chosen by kernels, and on tensors, as where gradients are kept."""
    with torch.no_grad():
        assert _quickly.choice(index, asked, policy.sinks, policy.recent) is not None
        quick = policy.choose(index, asked)
    with torch.enable_grad():
        return quick, policy.choose(index, asked)


@needed
@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(60, 400),
    share=st.floats(0.1, 1.0),
    ends=st.tuples(st.integers(0, 4), st.integers(0, 20)),
    batch=st.integers(1, 2),
    rows=st.integers(1, 4),
    weighted=st.booleans(),
    needle=st.booleans(),
    seed=st.integers(0, 99),
)
def test_kernels_choose_and_estimate_as_tensors_do(
    tokens: int, share: float, ends: tuple[int, int], batch: int, rows: int, weighted: bool, needle: bool, seed: int
) -> None:
    policy = Squeezed(budget=sum(ends) + int(share * (tokens - sum(ends))), sinks=ends[0], recent=ends[1])
    layer = haystack(tokens, needle=tokens // 2 if needle else None, seed=seed)
    index = policy.index(layer, policy.slots(tokens))
    asked = put(layer, index, question(layer, rows=rows, batch=batch, noise=1.0, seed=seed))
    if weighted:
        counts = torch.rand(batch, 1, GROUPS * rows, 1, generator=torch.Generator().manual_seed(seed))
        asked = dataclasses.replace(asked, weights=counts / counts.sum(2, keepdim=True))
    quick, slow = both(policy, index, asked)
    assert (quick.slots is None) == (slow.slots is None) and read(index, quick, batch) == read(index, slow, batch)
    if quick.slots is None:
        return
    assert quick.unread is not None and slow.unread is not None and quick.slots.shape[2] == policy.budget
    for one, other in (
        (quick.unread.log, slow.unread.log),
        (quick.unread.out, slow.unread.out),
        (quick.unread.wide, slow.unread.wide),
    ):
        assert one is not None and other is not None
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@needed
def test_formats_of_16_bits_are_no_worse_than_on_tensors() -> None:
    """Against the choice in float32: kernels round what is stored only, and tensors products too."""
    policy, layer = Squeezed(budget=240), haystack(1000, seed=3)
    index = policy.index(layer, policy.slots(1000))
    narrow = Index(
        1000,
        240,
        index.stored,
        {n: t.bfloat16() if t.dim() == 3 and n != "centre" else t for n, t in index.tensors.items()},
    )
    asked = put(layer, index, question(layer, noise=1.0))
    half = dataclasses.replace(asked, rows=asked.rows.bfloat16(), keys=asked.keys.bfloat16())
    _, exact = both(policy, index, dataclasses.replace(asked, rows=half.rows.float()))
    quick, slow = both(policy, narrow, half)
    off = []
    for choice in (quick, slow):
        assert choice.unread is not None and choice.unread.out is not None and exact.unread is not None
        off.append(float((choice.unread.log - exact.unread.log).abs().mean()))
    assert off[0] <= off[1] * 1.05 and off[0] < 0.01


@needed
def test_what_kernels_are_not_for_is_done_on_tensors() -> None:
    policy, layer = Squeezed(budget=60, recent=10), haystack(300)
    index = policy.index(layer, 60)
    asked = put(layer, index, question(layer))
    with torch.no_grad():
        assert _quickly.choice(index, asked, 4, 10) is not None
        many = dataclasses.replace(asked, rows=asked.rows.repeat(1, 1, 30, 1))
        for other in (
            many,
            dataclasses.replace(asked, softcap=30.0),
            dataclasses.replace(asked, rows=asked.rows.to("meta")),
        ):
            assert _quickly.choice(index, other, 4, 10) is None
    with torch.enable_grad():
        assert _quickly.choice(index, asked, 4, 10) is None


@needed
def test_a_kernel_that_cannot_be_compiled_leaves_the_choice_to_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, policy = haystack(300), Squeezed(budget=60, recent=10)
    index = policy.index(layer, 60)
    asked = put(layer, index, question(layer))
    with torch.no_grad():
        assert _quickly.choice(index, asked, 4, 10) is not None
        expected = policy.choose(index, asked)
        monkeypatch.setattr(machine, "checked", machine.checked.__wrapped__)
        monkeypatch.setattr(cluster_choice, "_compiled", cluster_choice._compiled.__wrapped__)
        monkeypatch.setattr(choice_code, "written", lambda *given: "define void @run(ptr %given) { no such thing }")
        assert _quickly.choice(index, asked, 4, 10) is None
        assert read(index, policy.choose(index, asked)) == read(index, expected)


@needed
@pytest.mark.parametrize("other", [{"levels": 2}, {"mass": 0.5}, {"mode": "paper"}])
def test_other_rules_than_the_budget_alone_never_come_here(
    other: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError("by kernels")

    monkeypatch.setattr(_quickly, "choice", refuse)
    layer = haystack(300)
    policy = dataclasses.replace(Squeezed(budget=60, recent=10), **other)  # type: ignore[arg-type]
    index = policy.settle([policy.index(layer, 60)])[0]
    with torch.no_grad():
        policy.choose(index, put(layer, index, question(layer)))
        with pytest.raises(AssertionError, match="by kernels"):
            Squeezed(budget=60, recent=10).choose(index, put(layer, index, question(layer)))
    assert KV_HEADS == len(index.tensors["sizes"])
