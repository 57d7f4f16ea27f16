"""Squeezed Attention: clusters, what is read of them, and what is thought of the rest."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from haystacks import DIM, GROUPS, KV_HEADS, SCALE, chosen, haystack, masses, put, question, read, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from transformers import AutoModelForCausalLM, MiMoV2FlashConfig

import longctx.kv
from longctx.errors import BadOption
from longctx.kv import _ranges
from longctx.kv._clusterers import Cluster, by_faiss, by_sklearn
from longctx.kv._clusters import clustered
from longctx.kv._kmeans import spherical
from longctx.kv.squeezed import Squeezed

POLICY = Squeezed(budget=60, sinks=2, recent=8, clusters=0.1)
STATISTICS = ("starts", "sizes", "means", "spreads", "says")


def spread(keys: torch.Tensor, labels: torch.Tensor) -> float:
    """The mean cosine of keys and the mean direction of their cluster."""
    unit = torch.nn.functional.normalize(keys, dim=-1)
    total = 0.0
    for cluster in labels.unique():
        own = unit[labels == cluster]
        total += float((own @ torch.nn.functional.normalize(own.mean(0), dim=0)).sum())
    return total / len(keys)


def test_clusters_fit_as_well_as_another_librarys() -> None:
    keys = torch.cat([tensors(60, 16, seed=s) * 0.3 + tensors(16, seed=50 + s) for s in range(8)])
    ours = spherical(keys[None], 16, 10)[0]
    unit = torch.nn.functional.normalize(keys, dim=-1).numpy()
    theirs = torch.from_numpy(KMeans(16, n_init=1, random_state=0).fit_predict(unit).astype(np.int64))
    assert spread(keys, ours) > spread(keys, theirs) - 0.01
    assert torch.equal(ours, spherical(keys[None], 16, 10)[0])


@pytest.mark.parametrize("iterations", [1, 8])
def test_clusters_are_those_of_faiss_from_the_same_start(iterations: int) -> None:
    faiss = pytest.importorskip("faiss")
    keys = torch.cat([tensors(60, 16, seed=s) * 0.3 + tensors(16, seed=50 + s) for s in range(8)])
    unit = torch.nn.functional.normalize(keys, dim=-1).numpy()
    spaced = torch.arange(16) * len(keys) // 16
    theirs = faiss.Kmeans(16, 16, niter=iterations, spherical=True, max_points_per_centroid=len(keys))
    theirs.train(unit, init_centroids=unit[spaced])
    nearest = torch.from_numpy(theirs.index.search(unit, 1)[1][:, 0])
    assert torch.equal(spherical(keys[None], 16, iterations)[0], nearest)


def test_sets_do_not_know_of_each_other() -> None:
    keys = tensors(3, 50, 8)
    together = spherical(keys, 7, 5)
    for number in range(3):
        assert torch.equal(together[number], spherical(keys[number : number + 1], 7, 5)[0])


@pytest.mark.parametrize("keys", [torch.ones(1, 30, 8), torch.zeros(1, 30, 8), tensors(1, 3, 8)])
def test_equal_keys_and_fewer_keys_than_clusters_are_clustered_too(keys: torch.Tensor) -> None:
    labels = spherical(keys, 5, 5)
    assert labels.shape == keys.shape[:2] and 0 <= int(labels.min()) and int(labels.max()) < 5


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(20, 120), share=st.floats(0.02, 0.6), segment=st.integers(7, 60), same=st.booleans(),
    cluster=st.sampled_from([spherical, by_faiss, by_sklearn]),
)  # fmt: skip
def test_statistics_are_those_of_the_keys_they_lie_beside(
    tokens: int, share: float, segment: int, same: bool, cluster: Cluster
) -> None:
    keys, values = tensors(KV_HEADS, tokens, 8, seed=tokens), tensors(KV_HEADS, tokens, 8, seed=1)
    if same:
        keys[:, 3:] = keys[:, 3:4]
    first, last = 2, tokens - 5
    order, found = clustered(keys, values, first, last, share, segment, 4, cluster)
    for head in range(KV_HEADS):
        assert sorted(order[head].tolist()) == list(range(tokens))
        assert order[head, :first].tolist() == [0, 1] and order[head, last:].tolist() == list(range(last, tokens))
        assert int(found["sizes"][head].sum()) == last - first
        torch.testing.assert_close(found["centre"][head, 0], keys[head, first:last].mean(0), rtol=1e-4, atol=1e-5)
        for start, size, mean, var, says in zip(*(found[n][head] for n in STATISTICS), strict=True):
            own = order[head, int(start) : int(start) + int(size)]
            if not len(own):
                continue
            torch.testing.assert_close(mean + found["centre"][head, 0], keys[head, own].mean(0), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(var, keys[head, own].var(0, correction=0), rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(says, values[head, own].mean(0), rtol=1e-4, atol=1e-5)
            assert len({int(token - first) // segment for token in own}) == 1


@pytest.mark.parametrize("options", [{}, {"levels": 2}, {"mode": "paper"}, {"mode": "paper", "levels": 2}])
@pytest.mark.parametrize("at", [5, 90, 180])
def test_a_needle_is_read(at: int, options: dict[str, object]) -> None:
    layer = haystack(200, needle=at)
    policy = dataclasses.replace(POLICY, **options)
    for row in chosen(policy, layer, question(layer, rows=3, batch=2)):
        for tokens in row:
            assert at in tokens and {0, 1, *range(192, 200)} <= tokens


def test_each_row_of_a_batch_chooses_for_itself() -> None:
    layer = haystack(200, needle=90)
    asked = question(layer, batch=2)
    apart = dataclasses.replace(asked, rows=torch.stack((asked.rows[0], -asked.rows[1])))
    looking, away = chosen(POLICY, layer, apart)
    alone = dataclasses.replace(asked, rows=apart.rows[:1])
    assert looking == chosen(POLICY, layer, alone)[0]
    assert all(90 in tokens for tokens in looking) and not any(90 in tokens for tokens in away)


def test_reading_stops_where_the_mass_is_reached() -> None:
    layer = haystack(400, needle=90)
    read = [
        len(chosen(dataclasses.replace(POLICY, budget=399, mass=mass), layer, question(layer))[0][0])
        for mass in (0.1, 0.5, 0.9, 0.99, 1.0)
    ]
    assert read == sorted(read) and read[0] < 60 and read[-1] > 380


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=60), room=st.integers(0, 120), seed=st.integers(0, 999),
    mass=st.sampled_from([1.0, 0.7, 0.1]), known=st.sampled_from([0.0, 0.4]), floor=st.integers(0, 60),
)  # fmt: skip
def test_the_likeliest_clusters_are_taken_one_by_one_while_they_fit(
    sizes: list[int], room: int, seed: int, mass: float, known: float, floor: int
) -> None:
    likely = torch.rand(1, 2, len(sizes), generator=torch.Generator().manual_seed(seed)) * torch.tensor(sizes)
    likely = likely / likely.sum(-1, keepdim=True).clamp_min(1e-9)
    held = torch.tensor(sizes).expand(1, 2, -1)
    before = torch.full((1, 2, 1), known) if mass < 1 else None
    taken = Squeezed(budget=999, mass=mass, least=132 + floor)._taken(likely, held, before, room)
    for head in range(2):
        worth = (likely[0, head] / held[0, head].clamp_min(1)).tolist()
        wanted, slots, read = set(), 0, torch.tensor(known)
        for cluster in sorted(range(len(sizes)), key=lambda c: -worth[c]):
            if slots + sizes[cluster] > room or (mass < 1 and read >= mass and slots >= floor):
                break
            slots += sizes[cluster]
            if sizes[cluster]:
                wanted.add(cluster)
            read = read + likely[0, head, cluster]
        assert set(taken[0, head].nonzero().flatten().tolist()) == wanted


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(60, 300), budget=st.integers(20, 250), least=st.integers(0, 240), levels=st.sampled_from([1, 2]),
    mass=st.sampled_from([1e-6, 0.05, 0.5, 0.9, 1.0]), noise=st.sampled_from([0.1, 3.0]), keep=st.booleans(),
)  # fmt: skip
def test_reads_stay_between_the_floor_and_the_cap(
    tokens: int, budget: int, least: int, levels: int, mass: float, noise: float, keep: bool
) -> None:
    layer = haystack(tokens, needle=tokens // 2, seed=tokens)
    cap: dict[str, Any] = {"budget": None, "keep": min(1.0, budget / tokens)} if keep else {"budget": budget}
    policy = dataclasses.replace(POLICY, **cap, least=least, mass=mass, levels=levels, clusters=0.2)
    if not keep and budget <= min(least + 19, tokens - 1) and least > 10:  # clusters of 20 keys at most
        with pytest.raises(
            BadOption, match=f"{least + 19} that are always read .least, and up to the end of a cluster"
        ):
            policy.slots(tokens)
        return
    slots = policy.slots(tokens)
    if slots >= tokens:
        return
    for row in chosen(policy, layer, question(layer, rows=2, batch=2, noise=noise)):
        for head in row:
            assert min(least, tokens) <= len(head) <= slots


def test_a_floor_reads_on_where_the_mass_is_reached_at_once() -> None:
    layer = haystack(400, needle=90)
    few = dataclasses.replace(POLICY, budget=200, mass=0.01)
    for levels in (1, 2):
        read = [
            len(chosen(dataclasses.replace(few, least=least, levels=levels), layer, question(layer))[0][0])
            for least in (0, 10, 50, 120, 160)
        ]
        assert read[0] == read[1] < 50 <= read[2] < 90 and 120 <= read[3] < 160 <= read[4] <= 200
    groups = dataclasses.replace(few, budget=391, least=350, levels=2)  # the better half of the groups holds fewer
    assert all(350 <= len(tokens) <= 391 for tokens in chosen(groups, layer, question(layer))[0])


@given(
    lengths=st.lists(st.lists(st.integers(0, 5), min_size=7, max_size=7), min_size=2, max_size=2),
    taken=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=4, max_size=4),
)
def test_ranges_become_their_slots(lengths: list[list[int]], taken: list[list[bool]]) -> None:
    length, wanted = torch.tensor(lengths)[None], torch.tensor(taken).view(2, 2, 7)
    starts = length.cumsum(-1) - length
    slots, counts = _ranges.members(wanted, starts, length)
    read = torch.arange(slots.shape[2]) < counts[..., None]
    for row in range(2):
        for head in range(2):
            ranges = zip(wanted[row, head].tolist(), starts[0, head].tolist(), lengths[head], strict=True)
            expected = [at for is_taken, start, count in ranges if is_taken for at in range(start, start + count)]
            assert slots[row, head, read[row, head]].tolist() == expected
    assert slots.shape[2] == int(read.sum(-1).max()) and not slots[~read].any()


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_what_is_not_read_is_estimated_by_the_means_of_its_clusters(softcap: float | None, levels: int) -> None:
    """Clusters of keys that are all alike leave nothing to estimate: mass and words are exact then."""
    layer = haystack(200, softcap=softcap)
    layer.keys[:, 2:192] = layer.keys[:, 2:21].repeat_interleave(10, 1)
    layer.values[:, 2:192] = layer.values[:, 2:21].repeat_interleave(10, 1)
    policy = dataclasses.replace(POLICY, levels=levels)
    index = policy.settle([policy.index(layer, 60)])[0]
    asked = put(layer, index, question(layer, rows=2, noise=1.0))
    choice = policy.choose(index, asked)
    assert choice.unread is not None and choice.unread.out is not None and index.stored is not None
    logits = masses(layer, question(layer, rows=2, noise=1.0))
    for head, tokens in enumerate(chosen(policy, layer, question(layer, rows=2, noise=1.0))[0]):
        left = sorted(set(range(200)) - tokens)
        log = logits[0, head][:, left].logsumexp(-1)
        says = logits[0, head][:, left].softmax(-1) @ layer.values[head, left].double()
        loose = {} if levels == 1 else {"rtol": 0.5, "atol": 1.0}  # groups hold clusters that differ
        limits = loose or {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(choice.unread.log[0, head].double(), log, **limits)
        torch.testing.assert_close(choice.unread.out[0, head].double(), says, **limits)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("mode", ["top-p", "paper"])
def test_a_bound_stands_on_the_second_order_of_what_is_not_read(mode: Any, softcap: float | None) -> None:
    """The sum over clusters left out of n exp(mean + variance / 2) of scores; a soft cap leaves the first order."""
    layer = haystack(200, softcap=softcap)
    policy = dataclasses.replace(POLICY, mode=mode)
    index = policy.settle([policy.index(layer, 60)])[0]
    asked = put(layer, index, question(layer, rows=2, noise=1.0))
    choice = policy.choose(index, asked)
    assert choice.unread is not None and choice.slots is not None and choice.read is not None
    for head in range(KV_HEADS):
        taken = set(choice.slots[0, head][choice.read[0, head]].tolist())
        sums = []
        for start, size, mean, var in zip(
            *(index.tensors[name][head] for name in ("starts", "sizes", "means", "spreads")), strict=True
        ):
            if int(size) and int(start) not in taken:
                whole = mean.double() + index.tensors["centre"][head, 0].double()
                logits = asked.rows[0, head].double() @ whole * SCALE
                logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
                spread = 0 if softcap else (asked.rows[0, head].double() * SCALE).square() @ var.double() / 2
                sums.append(logits + spread + np.log(int(size)))
        torch.testing.assert_close(
            choice.unread.base[0, head].double(), torch.stack(sums).logsumexp(0), rtol=1e-4, atol=1e-4
        )
    assert (choice.unread.base > choice.unread.log + 1e-6).any() == (softcap is None)


def test_a_large_bias_that_all_keys_share_costs_narrow_scores_nothing() -> None:
    """Some models have key biases of a hundred: a product in bfloat16 would round their scores to whole numbers."""
    layer, bias = haystack(400), torch.full((KV_HEADS, 1, DIM), 40.0)
    asked = question(layer)
    found = []
    for dtype in (torch.float64, torch.bfloat16):
        keys = (layer.keys + bias).to(torch.bfloat16).to(dtype)
        held = dataclasses.replace(layer, keys=keys, values=layer.values.to(dtype))
        here = dataclasses.replace(asked, rows=(4 * asked.rows).to(torch.bfloat16).to(dtype), keys=keys)
        index = POLICY.index(held, POLICY.slots(held.tokens))
        choice = POLICY.choose(index, put(held, index, here))
        assert choice.unread is not None
        found.append(choice.unread.log.double())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0.03)


def test_the_papers_threshold_reads_the_budget_on_the_last_queries() -> None:
    """2411.09688: one quantile over all layers and heads of the mean likelihood of one key of each cluster."""
    layers = [haystack(300, seed=seed) for seed in (0, 10, 20)]
    policy = dataclasses.replace(POLICY, mode="paper", budget=100)
    indices = policy.settle([policy.index(layer, 100) for layer in layers])
    (threshold,) = {float(index.tensors["threshold"]) for index in indices}
    read = 0
    for layer, index in zip(layers, indices, strict=True):
        own = index.tensors
        for head in range(KV_HEADS):
            queries = layer.queries[head * 3 : head * 3 + 3].reshape(-1, 16).double()
            logits = queries @ (own["means"] + own["centre"])[head].double().T * SCALE
            norm = (logits.exp() * own["sizes"][head]).sum(-1, keepdim=True)
            score = (logits.exp() / norm).mean(0)
            read += int(own["sizes"][head][score > np.exp(threshold) * (1 + 1e-6)].sum())
    assert 0.9 * 90 < read / 6 <= 90


def test_the_papers_index_holds_what_it_looks_at_and_no_more() -> None:
    """What clusters say is for estimates of what is not read, which it makes none of."""
    layer, found = haystack(300), {}
    for mode, levels in (("top-p", 1), ("paper", 1), ("paper", 2), ("top-p", 2)):
        policy = dataclasses.replace(POLICY, mode=mode, levels=levels, budget=100)
        (index,) = policy.settle([policy.index(layer, 100)])
        found[mode, levels] = set(index.tensors)
        assert policy.choose(index, put(layer, index, question(layer))).slots is not None
        own = [index.tensors[name] for name in ("means", "spreads", "says") if name in index.tensors]
        states = sum(one.shape[-1] * one.element_size() for one in own)
        heads, dim = layer.keys.shape[0], layer.keys.shape[2]
        planned = policy.index_bytes(300, heads, heads, dim, layer.keys.element_size())
        assert index.stored is not None
        held = index.stored.nbytes + sum(one.nbytes for one in index.tensors.values())
        assert held == pytest.approx(planned, rel=0.02)
        assert levels == 2 or planned == heads * (8 * 300 + math.ceil(policy.density * 300) * (states + 20))
    assert found["top-p", 1] - found["paper", 1] == {"says"} and "window" not in found["paper", 1]
    assert "says" in found["paper", 2]


def test_scores_of_thousands_do_not_overflow() -> None:
    layer = haystack(200, needle=90)
    loud = dataclasses.replace(layer, keys=layer.keys * 1000)
    for options in ({}, {"levels": 2}, {"mode": "paper"}):
        policy = dataclasses.replace(POLICY, **options)
        index = policy.settle([policy.index(loud, 60)])[0]
        choice = policy.choose(index, put(loud, index, question(loud)))
        assert choice.unread is not None and torch.isfinite(choice.unread.log).all()


@pytest.mark.parametrize("mass", [1.0, 0.5])
def test_no_key_needs_to_be_read_always(mass: float) -> None:
    layer = haystack(200, needle=77)
    policy = dataclasses.replace(POLICY, sinks=0, recent=0, mass=mass)
    (index,) = policy.settle([policy.index(layer, 60)])
    choice = policy.choose(index, put(layer, index, question(layer)))
    assert choice.unread is not None and choice.unread.log.isfinite().all()
    for tokens in read(index, choice)[0]:
        assert 77 in tokens and len(tokens) <= 60


def test_options_that_cannot_be() -> None:
    with pytest.raises(BadOption, match="levels=3"):
        Squeezed(levels=3)
    with pytest.raises(BadOption, match="sinks=-1"):
        Squeezed(sinks=-1)
    with pytest.raises(BadOption, match="least=-1"):
        Squeezed(least=-1)
    with pytest.raises(BadOption, match="least=300 .* mode=paper"):
        Squeezed(least=300, mode="paper")


def test_a_model_whose_layers_all_see_a_window_needs_no_threshold() -> None:
    model = tiny.model("mistral")
    ids = torch.randint(4, 470, (60,), generator=torch.Generator().manual_seed(0))
    context = longctx.kv.compress(model, ids, "squeezed:budget=30,sinks=2,recent=4,mode=paper")
    assert context.left_alone == (0, 1, 2, 3) and "nothing to compress" in context.warnings[0]


@pytest.mark.parametrize("size", [1.0, 6.0])
@pytest.mark.parametrize("mode", ["top-p", "paper"])
def test_what_is_left_is_weighed_by_its_own_scores_however_wide_the_clusters_read_are(size: float, mode: Any) -> None:
    """Wide clusters raise the estimate of what is read by hundreds of nats; what is left must not be lost below it."""
    layer = haystack(600, seed=5)
    layer = dataclasses.replace(layer, keys=layer.keys * size, queries=layer.queries * size)
    policy = Squeezed(budget=300, mode=mode)
    (index,) = policy.settle([policy.index(layer, 300)])
    rows = size * tensors(1, KV_HEADS, GROUPS, DIM, seed=11)
    asked = put(layer, index, dataclasses.replace(question(layer), rows=rows))
    choice = policy.choose(index, asked)
    assert choice.unread is not None and choice.unread.wide is not None
    assert choice.unread.log.isfinite().all() and choice.unread.wide.isfinite().all()
    starts, sizes = index.tensors["starts"], index.tensors["sizes"]
    means = index.tensors["means"] + index.tensors["centre"]
    for head in range(KV_HEADS):
        slots = set(choice.slots[0, head][choice.read[0, head]].tolist())
        left = [i for i in range(sizes.shape[1]) if sizes[head, i] and int(starts[head, i]) not in slots]
        for row in range(GROUPS):
            log = (means[head, left] @ rows[0, head, row]) * SCALE + sizes[head, left].log()
            torch.testing.assert_close(choice.unread.log[0, head, row], log.logsumexp(0), rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("one_thread")
def test_values_of_another_width_than_keys_are_bounded_too() -> None:
    """The kernel of choices is for equal ones, and used to be asked all the same."""
    config = MiMoV2FlashConfig(
        vocab_size=480, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, v_head_dim=16, layer_types=["full_attention"] * 2, n_routed_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=48, pad_token_id=1, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(4, 470, (1, 120), generator=torch.Generator().manual_seed(2))
    context = longctx.kv.compress(model, ids[:, :100], "squeezed:budget=60,sinks=2,recent=8")
    with torch.inference_mode(), context.attached(model, audit_every=1) as cache:
        model(ids[:, 100:], past_key_values=cache)
        report = cache.report()
    assert 0.2 < report.read_share <= 0.6 and report.unread_share is not None and report.audited == 1
