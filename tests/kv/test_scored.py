"""Clusters by somebody else's scores: a stand-in for a press, and the real ones where they are installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
import tiny
import torch
from haystacks import KV_HEADS, chosen, haystack, masses, put, question
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import longctx.kv
from longctx.errors import BadOption, UsageError
from longctx.kv import Scored

IDS = torch.randint(4, 470, (1, 90), generator=torch.Generator().manual_seed(1))


@dataclass
class Press:
    """As a ScorerPress is: a dataclass with a ratio that nobody asks for here."""

    by: Callable[..., Any]
    compression_ratio: float = 0.0

    def score(self, module: Any, hidden_states: Any, keys: Tensor, values: Tensor, attentions: Any, kwargs: Any) -> Any:
        return self.by(module, hidden_states, keys, values, attentions, kwargs)


NORM = Press(lambda module, hidden, keys, values, attentions, kwargs: -keys.norm(dim=-1))


@pytest.mark.parametrize("by", ["mean", "max"])
@pytest.mark.parametrize("seed", range(4))
def test_the_clusters_are_read_that_the_scorer_thinks_most_of(by: Literal["mean", "max"], seed: int) -> None:
    layer = haystack(160, seed=seed)
    policy = Scored(NORM, budget=50, by=by, sinks=2, recent=8, segment=64)
    index = policy.index(layer, 50)
    assert index.stored is not None
    for head in range(KV_HEADS):
        scores = -layer.keys[head].norm(dim=-1)
        clusters = []
        for start, size in zip(
            index.tensors["starts"][head].tolist(), index.tensors["sizes"][head].tolist(), strict=True
        ):
            if size:
                own = index.stored[head, start : start + size]
                clusters.append((float(scores[own].mean() if by == "mean" else scores[own].max()), own.tolist()))
        expected = {0, 1, *range(152, 160)}
        for _, own in sorted(clusters, key=lambda cluster: -cluster[0]):
            if len(expected) + len(own) > 50:
                break
            expected |= set(own)
        assert len(expected) > 30
        for noise in (0.1, 3.0):  # whatever is asked
            assert chosen(policy, layer, question(layer, rows=2, batch=2, noise=noise))[1][head] == expected


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(30, 150), budget=st.integers(12, 140), clusters=st.sampled_from([0.05, 0.2, 1.0]))
def test_never_more_than_the_budget_is_read(tokens: int, budget: int, clusters: float) -> None:
    policy = Scored(NORM, budget=budget, clusters=clusters, sinks=2, recent=8, segment=40)
    if policy.slots(tokens) < tokens:
        layer = haystack(tokens, seed=tokens)
        assert all(10 <= len(head) <= budget for head in chosen(policy, layer, question(layer))[0])


def test_what_is_not_read_is_estimated_by_the_means_of_its_clusters() -> None:
    layer = haystack(200)
    layer.keys[:, 2:192] = layer.keys[:, 2:21].repeat_interleave(10, 1)
    layer.values[:, 2:192] = layer.values[:, 2:21].repeat_interleave(10, 1)
    policy = Scored(NORM, budget=60, sinks=2, recent=8)
    index, asked = policy.index(layer, 60), question(layer, rows=2, noise=1.0)
    unread = policy.choose(index, put(layer, index, asked)).unread
    assert unread is not None and unread.out is not None
    for head, tokens in enumerate(chosen(policy, layer, asked)[0]):
        left = sorted(set(range(200)) - tokens)
        logits = masses(layer, asked)[0, head][:, left]
        torch.testing.assert_close(unread.log[0, head].double(), logits.logsumexp(-1), rtol=1e-4, atol=1e-4)
        says = logits.softmax(-1) @ layer.values[head, left].double()
        torch.testing.assert_close(unread.out[0, head].double(), says, rtol=1e-4, atol=1e-4)


def test_a_model_reads_through_it_and_says_what_it_left_out() -> None:
    model, seen = tiny.model("llama"), []

    def by(module: Any, hidden: Any, keys: Tensor, values: Tensor, attentions: Any, kwargs: Any) -> Tensor:
        seen.append((module.layer_idx, keys.shape, values.shape))
        return values.norm(dim=-1) * module.scaling

    modules = [layer.self_attn for layer in model.model.layers]
    policy = Scored(Press(by), budget=30, sinks=2, recent=8, modules=modules)
    context = longctx.kv.compress(model, IDS[:, :80], policy)
    assert seen == [(number, (1, 2, 80, 16), (1, 2, 80, 16)) for number in range(4)]
    with torch.inference_mode(), context.attached(model, audit_every=1) as cache:
        model(IDS[:, 80:], past_key_values=cache)
        report = cache.report()
    assert 20 < report.read_keys <= 30 and report.unread_bound is not None and report.true_unread_share is not None
    planned = 4 * (2 * 2 * 80 * 16 * 4 + policy.index_bytes(80, 4, 2, 16, 4))
    assert context.nbytes == pytest.approx(planned, rel=0.1)


def test_all_clusters_are_full_attention() -> None:
    model = tiny.model("llama")
    context = longctx.kv.compress(model, IDS[:, :80], Scored(NORM, budget=79, sinks=2, recent=8, clusters=1.0))
    assert all(int(held.index.tensors["taken"].sum(-1).min()) >= 69 for held in context._context.layers)
    whole = longctx.kv.compress(model, IDS[:, :80], Scored(NORM, budget=80, sinks=2, recent=8))
    assert whole.policy.lossless and "all 80 tokens" in whole.warnings[0]


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (lambda m, hidden, *rest: hidden.mean(-1), "Press asks for hidden states, and a context keeps keys"),
        (lambda m, h, k, v, attentions, kwargs: attentions.sum(2), "Press asks for attentions"),
        (lambda m, h, k, v, a, kwargs: kwargs["position_embeddings"], "Press asks for arguments of a pass"),
        (lambda module, *rest: module.config, "Press asks for the layer's module"),
        (lambda m, hidden, *rest: torch.nn.functional.normalize(hidden), "more than keys and values"),
        (lambda m, h, keys, *rest: keys[0, :, :, 0], r"shape \(2, 50\) .* of shape \(1, 2, 50, 16\)"),
        (lambda m, h, keys, *rest: keys[..., 0].log(), "one finite number for every key"),
    ],
)
def test_a_scorer_that_cannot_be_asked_says_why(by: Callable[..., Any], said: str) -> None:
    with pytest.raises(BadOption, match=said):
        Scored(Press(by), budget=30, sinks=2, recent=8).index(haystack(50), 30)


def test_options_that_cannot_be_and_a_context_that_cannot_be_saved(tmp_path: Any) -> None:
    with pytest.raises(BadOption, match="object scores no keys"):
        Scored(object())  # type: ignore[arg-type]
    with pytest.raises(BadOption, match="clusters=0"):
        Scored(NORM, clusters=0)
    with pytest.raises(BadOption, match="iterations=0"):
        Scored(NORM, iterations=0)
    with pytest.raises(BadOption, match="Scored: a budget of 10 slots"):
        Scored(NORM, budget=10).slots(1000)
    context = longctx.kv.compress(tiny.model("llama"), IDS, Scored(NORM, budget=40, sinks=2, recent=8))
    with pytest.raises(UsageError, match="Scored is not one of the policies by name"):
        context.save(tmp_path / "context")


REAL = """
import torch
from kvpress import KeyDiffPress, KnormPress, LagKVPress, SnapKVPress
from haystacks import haystack
from longctx.errors import BadOption
from longctx.kv import Scored

layer = haystack(400)
for press in (KnormPress(), KeyDiffPress(), LagKVPress(lag_size=16)):
    policy = Scored(press, budget=100, sinks=4, recent=16)
    taken = policy.index(layer, 100).tensors["taken"]
    own = press.score(None, None, layer.keys[None], layer.values[None], None, {})[0]
    assert torch.equal(own.float(), policy._scores(layer)) and taken.any() and not taken.all()
try:
    Scored(SnapKVPress(), budget=100, sinks=4, recent=16).index(layer, 100)
except BadOption as error:
    print(error)
"""


@pytest.mark.skipif(find_spec("kvpress") is None, reason="kvpress is not installed")
def test_the_presses_of_kvpress_that_look_at_keys_score_ours() -> None:
    """In a process of its own: importing kvpress wraps every attention function of transformers."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{REAL}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "SnapKVPress asks for " in ran.stdout, ran.stderr
