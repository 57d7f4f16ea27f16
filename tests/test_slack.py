"""The bound on what was not read: right by its own measure, and held by new queries that are like the old."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from haystacks import DIM, GROUPS, KV_HEADS, SCALE, haystack, tensors

import longctx.kv
from longctx.backend import compressing
from longctx.backend.compressing import stored
from longctx.backend.forks import Held
from longctx.backend.queries import BEHIND, FRAGMENT, FRAGMENTS, quoted
from longctx.backend.slack import QUERIES, slack
from longctx.keys import Asked
from longctx.kv.full import Full
from longctx.kv.oracle import Oracle
from longctx.kv.squeezed import Squeezed

pytestmark = pytest.mark.usefixtures("one_thread")
POLICY = Squeezed(budget=80, sinks=2, recent=8, clusters=0.05)


def held(policy: Any, budget: int) -> Held:
    layer = haystack(400, seed=3)
    index = policy.settle([policy.index(layer, budget)])[0]
    if index.stored is None:
        return Held(layer.keys, layer.values, index)
    return Held(stored(layer.keys, index.stored), stored(layer.values, index.stored), index)


def queries(count: int, seed: int) -> torch.Tensor:
    return 3 * tensors(KV_HEADS * GROUPS, count, DIM, seed=seed)


def excess(layer: Held, asking: torch.Tensor, policy: Any, softcap: float | None = None) -> torch.Tensor:
    """By a plain loop: how far the true mass is above the estimate, as logarithms [kv_heads, count * groups]."""
    off: list[list[float]] = [[] for _ in range(KV_HEADS)]
    for at in range(asking.shape[1]):
        rows = asking[:, at].view(1, KV_HEADS, GROUPS, DIM)
        choice = policy.choose(layer.index, Asked(rows, layer.keys, SCALE, softcap, 400))
        for head in range(KV_HEADS):
            read = choice.slots[0, head] if choice.read is None else choice.slots[0, head][choice.read[0, head]]
            left = torch.ones(400, dtype=torch.bool)
            left[read] = False
            for row in range(GROUPS):
                logits = layer.keys[head].double() @ rows[0, head, row].double() * SCALE
                logits = logits if softcap is None else softcap * (logits / softcap).tanh()
                off[head].append(float(logits[left].logsumexp(0) - choice.unread.base[0, head, row]))
    return torch.tensor(off)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_it_is_the_conformal_quantile_of_the_excess(softcap: float | None) -> None:
    layer = held(POLICY, 80)
    asking = queries(100, seed=5)
    found = slack(POLICY, layer, asking, SCALE, softcap)
    expected = excess(layer, asking, POLICY, softcap).sort(-1).values[:, 297 - 1]  # ceil(0.985 * (300 + 1)) of 300
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_new_queries_of_the_same_kind_keep_to_it() -> None:
    layer = held(POLICY, 80)
    found = slack(POLICY, layer, queries(64, seed=5), SCALE, None)
    assert found is not None
    above = excess(layer, queries(100, seed=6), POLICY) > found[:, None]
    # 300 draws a head at 1.5 %: more than 8 % would be nine standard errors off
    assert above.float().mean(-1).max() < 0.08
    assert excess(layer, queries(100, seed=6), POLICY).mean() < found.mean()


@pytest.mark.parametrize(("window", "room"), [(0, BEHIND), (308, 8), (300, 0)])
def test_a_context_is_measured_on_its_last_queries_and_on_those_of_what_is_behind(window: int, room: int) -> None:
    """Against each kind by itself; with ``room`` for few more tokens or none, more of the last ones are measured on."""
    model = tiny.model("llama", **({"max_position_embeddings": window} if window else {}))
    ids = torch.randint(4, 470, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    policy = Squeezed(budget=60, sinks=2, recent=8, clusters=0.1)
    layers, last = compressing.read(model, ids, 100, 100)
    context = compressing.indexed(model, layers, last, ids, policy, 60)
    again = quoted(model, context, ids)
    assert again.count == room
    fewest = compressing.read(model, ids, 0, 100)[1]  # for a policy that wants to see none
    assert all(own.shape[1] == QUERIES + BEHIND for own in fewest.last.values())
    largest = [0] * (1 + (room > 0) + (room < BEHIND))
    for number, layer in enumerate(context.layers):
        assert last.last[number].shape[1] == 100  # of which the last count
        kinds = [(last, last.last[number][:, -QUERIES:])]
        kinds += [(last, last.last[number][:, -(QUERIES + BEHIND - room) :])] if room < BEHIND else []
        kinds += [(again, again.last[number])] if room else []
        with torch.inference_mode():  # as it is done: without gradients kernels may choose
            found = [slack(policy, layer, own, *q.scores[number]) for q, own in kinds]
        each = torch.stack([one for one in found if one is not None])
        assert layer.slack is not None and len(each) == len(largest)
        assert torch.equal(layer.slack, each.amax(0))
        for kind in each.argmax(0).tolist():
            largest[kind] += 1
    assert largest[-1] and sum(largest[:-1])  # or nothing was shown of the kinds


@pytest.mark.parametrize(("count", "window"), [(300, 0), (300, 310), (300, 300), (3, 0), (300, None)])
def test_fragments_of_a_text_are_read_again_as_the_model_reads_them_behind_it(count: int, window: int | None) -> None:
    """Against the model's own pass over the text with the fragments behind it, where the policy reads everything.

    With a ``window`` of 310 tokens there is room for two of them, and without one (None) for all.
    """
    model = tiny.model("llama", **({"max_position_embeddings": window} if window else {}))
    if window is None:
        model.config.max_position_embeddings = 0  # it says none
    ids = torch.randint(4, 470, (count,), generator=torch.Generator().manual_seed(1)).tolist()
    layers, last = compressing.read(model, ids, 0, 100)
    context = compressing.indexed(model, layers, last, ids, Full(), count)
    found = quoted(model, context, ids)
    most = FRAGMENTS if not window else (window - count) // FRAGMENT
    spare = max(0, count - FRAGMENT)
    starts = [(2 * number + 1) * spare // (2 * most) for number in range(most)]
    again = [token for start in starts for token in ids[start : start + FRAGMENT]]
    assert len({*starts}) == (most if spare else 1) and len(again) == most * min(count, FRAGMENT)
    assert found.count == len(again)
    if again:
        expected = compressing.read(model, ids + again, len(again), 1000)[1]
        for number, own in found.last.items():
            torch.testing.assert_close(own, expected.last[number][:, -len(again) :], rtol=1e-4, atol=1e-5)
    else:
        assert not found.last


def test_exact_estimates_need_none_and_no_estimate_has_none() -> None:
    exact = slack(Oracle(budget=80), held(Oracle(budget=80), 80), queries(16, seed=5), SCALE, None)
    assert exact is not None and exact.abs().max() < 1e-4
    from longctx.kv.random import Random

    blind = Random(budget=80, sinks=2, recent=8)
    assert slack(blind, held(blind, 80), queries(16, seed=5), SCALE, None) is None


def test_the_report_of_an_answer_states_the_bound_and_how_often_it_held() -> None:
    model = tiny.model("llama")
    ids = torch.randint(4, 470, (1, 320), generator=torch.Generator().manual_seed(0))
    context = longctx.kv.compress(model, ids[:, :300], "squeezed:budget=60,sinks=2,recent=8,clusters=0.1")
    with context.attached(model, audit_every=1) as cache:
        model.generate(ids, past_key_values=cache, do_sample=False, max_new_tokens=40, min_new_tokens=40)
        report = cache.report()
    assert report.unread_share is not None and report.true_unread_share is not None
    assert report.unread_bound is not None and report.above_bound is not None
    assert report.unread_share < report.true_unread_share < report.unread_bound <= 1
    assert report.above_bound < 0.15
    with longctx.kv.compress(model, ids[:, :300], "quest:budget=60").attached(model, audit_every=1) as cache:
        model.generate(ids, past_key_values=cache, do_sample=False, max_new_tokens=3)
        assert (cache.report().unread_bound, cache.report().above_bound) == (None, None)
