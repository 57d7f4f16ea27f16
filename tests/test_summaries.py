"""Summaries against their definition spelled out, their bounds against every key, a glance against plain products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from longctx.backend.caches import Stored
from longctx.backend.probe import Probe
from longctx.backend.summaries import CHUNK, Summary, chunked, joined, scored, summarise
from longctx.backend.tokens import Tokens
from longctx.errors import ArtifactError, ModelError
from longctx.store import files, summaries

pytestmark = pytest.mark.usefixtures("one_thread")
UNITS = (11, 0, 1, 24, 8)
QUESTION = "Where does the street winter letter go?"


def obvious(keys: torch.Tensor, units: Any) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Representations of chunks, and bounds of units, of the keys [tokens, dim] of one KV head, one by one."""
    chosen, low, high, at = [], [], [], 0
    for unit in units:
        own = keys[at : at + unit].double()
        low.append(own.amin(0) if unit else own.new_zeros(keys.shape[1]))
        high.append(own.amax(0) if unit else own.new_zeros(keys.shape[1]))
        start = 0
        for length in chunked(unit):
            part = own[start : start + length]
            weights = (part @ part.mean(0) / keys.shape[1] ** 0.5).softmax(0)
            chosen.append(sum(w * key for w, key in zip(weights, part, strict=True)))  # type: ignore[arg-type]
            start += length
        at += unit
    return chosen, low, high


@given(st.integers(0, 500))
def test_chunks_tile_a_unit_and_are_as_even_as_can_be(tokens: int) -> None:
    found = chunked(tokens)
    assert sum(found) == tokens and len(found) == -(-tokens // CHUNK)
    assert not found or (min(found) >= 1 and max(found) <= CHUNK and max(found) - min(found) <= 1)


def probe_of(family: str, **changes: Any) -> Probe:
    return Probe(tiny.model(family, **changes), Tokens(tiny.tokenizer("system")), "tiny")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_summary_is_what_its_definition_says_of_the_keys_of_a_fresh_pass(family: str) -> None:
    probe = probe_of(family)
    ids = np.random.default_rng(1).integers(4, 470, sum(UNITS)).tolist()
    heads = ((0, 1), (2, 3), (2, 2), (3, 0))
    (_, stored) = next(iter(probe.read([ids])))
    made = probe.summarise(stored, UNITS, heads)
    cache = DynamicCache(config=probe.model.config)
    with torch.inference_mode():
        probe.model(torch.tensor([[*probe.prefix, *ids]]), past_key_values=cache)
    share = 1 if family == "gpt_neox" else 2  # query heads of one KV head
    assert made.pairs == tuple(sorted({(layer, head // share) for layer, head in heads})) and made.units == UNITS
    for at, (layer, head) in enumerate(made.pairs):
        full = cache.layers[layer].keys
        assert full is not None
        if full.shape[2] < len(probe.prefix) + len(ids):
            full = stored.keys[layer][None]  # a sliding layer keeps the last tokens only
        expected = obvious(full[0, head, -len(ids) :], UNITS)
        for tensor, wanted in zip((made.representation, made.low, made.high), expected, strict=True):
            np.testing.assert_allclose(tensor[:, at], torch.stack(wanted), atol=2e-4)


NUMBERS = st.floats(-50, 50, width=32)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_product_with_a_key_passes_the_bound_of_its_unit_and_a_box_of_one_key_is_met(data: Any) -> None:
    units = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    size = data.draw(st.sampled_from([0.01, 1.0, 300.0]))
    keys = (torch.randn(2, sum(units), 6, generator=draw) * size).to(dtype)
    made = summarise(Stored((keys,), (keys,)), units, [(0, 0), (0, 1)])
    rows = torch.tensor(data.draw(st.lists(st.lists(NUMBERS, min_size=6, max_size=6), min_size=1, max_size=3)))
    for pair in (0, 1):
        bound = scored(rows, made, pair, "bounds")
        exact = rows.double() @ keys[pair].double().T
        at = 0
        for unit, length in enumerate(units):
            own = exact[:, at : at + length]
            slack = 1e-5 * (rows.abs() @ keys[pair, at : at + length].float().abs().T) + 1e-6
            assert (own <= bound[:, unit : unit + 1] + slack).all()
            if length == 1:
                assert (bound[:, unit : unit + 1] - own <= slack).all()
            at += length


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("by", ["representation", "bounds"])
def test_a_glance_is_the_softmax_of_plain_products_with_the_question_behind_a_segment(family: str, by: Any) -> None:
    """The queries are those of an eager pass over [prefix + question], with the question's positions moved."""
    changes = {"sliding_window": 4096} if family == "gemma2" else {}
    probe = probe_of(family, **changes)
    rng = np.random.default_rng(2)
    units = ((9, 0, 20), (17, 3))
    stored = dict(probe.read([rng.integers(4, 470, sum(own)).tolist() for own in units]))
    heads = ((1, 3), (3, 0), (1, 0))
    inquiry = probe.inquiry(QUESTION, heads=heads)
    whole = joined([probe.summarise(stored[i], own, heads) for i, own in enumerate(units)])
    assert whole.units == (9, 0, 20, 17, 3)
    found = probe.glance(whole, inquiry, 29, by)

    queries: dict[int, torch.Tensor] = {}
    offset, new = len(probe.prefix), len(inquiry.ids)
    positions = torch.tensor([[*range(offset), *range(offset + 29, offset + 29 + new)]])
    original = _spied(probe, queries, positions, [*probe.prefix, *inquiry.ids])
    assert original > 0
    first, last = inquiry.rows
    for at, (layer, head) in enumerate(heads):
        pair = whole.pairs.index((layer, head // 2))
        rows = queries[layer][head, offset + first : offset + last].double()
        scale = float(probe.model.model.layers[layer].self_attn.scaling)
        counts = [len(chunked(unit)) for unit in whole.units]
        if by == "representation":
            scores = rows @ whole.representation[:, pair].double().T
        else:
            low, high = whole.low[:, pair].double(), whole.high[:, pair].double()
            scores = torch.maximum(rows[:, None] * low, rows[:, None] * high).sum(-1)
            scores = scores[:, [i for i, count in enumerate(counts) if count]]
            counts = [min(count, 1) for count in counts]
        scores = scores * scale
        if family == "gemma2":
            scores = torch.tanh(scores / 5.0) * 5.0
        share = scores.softmax(-1).mean(0)
        edges = np.cumsum([0, *counts])
        expected = [float(share[a:b].max()) if b > a else 0.0 for a, b in zip(edges, edges[1:], strict=False)]
        np.testing.assert_allclose(found[at], expected, atol=2e-4)


def _spied(probe: Probe, queries: dict[int, torch.Tensor], positions: torch.Tensor, ids: list[int]) -> int:
    """Queries of an eager pass as its attention function is given them, [heads, tokens, dim] of each layer."""
    import sys

    from transformers import AttentionInterface

    module = sys.modules[type(probe.model).__module__]

    def spy(layer: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        queries[layer.layer_idx] = query[0]
        return module.eager_attention_forward(layer, query, *args, **kwargs)  # type: ignore[attr-defined]

    AttentionInterface.register("spied", spy)  # type: ignore[arg-type]
    before = probe.model.config._attn_implementation
    length = len(ids)
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    try:
        probe.model.set_attn_implementation("spied")
        named = {kind: mask for kind in getattr(probe.model.config, "layer_types", None) or ()}
        own: Any = named if type(probe.model).__name__.startswith("Gemma") else mask
        with torch.inference_mode():
            probe.model(torch.tensor([ids]), position_ids=positions, attention_mask=own, use_cache=False)
    finally:
        probe.model.set_attn_implementation(before)
    return len(queries)


def test_a_glance_leaves_the_model_as_it_was_and_reads_no_deeper_than_its_heads() -> None:
    probe = probe_of("llama")
    stored = next(iter(probe.read([[5, 6, 7, 8]])))[1]
    seen: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, at=at: seen.append(at))
        for at, layer in enumerate(probe.model.model.layers)
    ]
    before = probe.model.config._attn_implementation
    heads = ((0, 1), (1, 0))
    one = probe.glance(probe.summarise(stored, (4,), heads), probe.inquiry(QUESTION, heads=heads), 4)
    assert one.shape == (2, 1) and np.allclose(one, 1.0)
    assert not set(seen) & {2, 3} and probe.model.config._attn_implementation == before
    for hook in hooks:
        hook.remove()


def test_what_does_not_belong_together_is_refused() -> None:
    keys = torch.randn(1, 4, 6)
    stored = Stored((keys,), (keys,))
    with pytest.raises(ValueError, match="units of 5 tokens"):
        summarise(stored, (5,), [(0, 0)])
    made = summarise(stored, (4,), [(0, 0)])
    with pytest.raises(ValueError, match="should be of"):
        Summary(made.pairs, (4, 1), made.representation, made.low, made.high)
    other = Summary(((1, 0),), made.units, made.representation, made.low, made.high)
    with pytest.raises(ValueError, match="different heads"):
        joined([made, other])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_gives_back_the_bits_and_refuses_other_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    keys = torch.randn(1, 20, 6).to(dtype)
    made = summarise(Stored((keys,), (keys,)), (20,), [(0, 0)])
    parts = (made.representation, made.low, made.high)
    entry, _ = files.write(tmp_path, "summary", summaries.pack(parts))
    again = summaries.load(tmp_path, entry, dtype)
    assert again is not None and all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    with pytest.raises(ArtifactError, match="not torch.float16"):
        summaries.load(tmp_path, entry, torch.float16)
    assert summaries.load(tmp_path, entry, dtype) is None  # it was set aside
    endless = summaries.pack((made.representation, made.low, torch.full_like(made.high, torch.inf)))
    with pytest.raises(ValueError, match="not finite"):
        summaries.unpack(endless, dtype)


def test_a_key_is_of_all_that_a_summary_is_made_from() -> None:
    given: tuple[Any, ...] = ("m", (1, 2), (3, 4, 5), (2, 1), ((0, 1),))
    others: tuple[Any, ...] = ("n", (1,), (3, 4), (1, 2), ((0, 2),))
    keys = {summaries.key(*given[:at], others[at], *given[at + 1 :]) for at in range(len(given))}
    assert len(keys | {summaries.key(*given)}) == 6


def test_heads_that_there_are_not_have_no_summary() -> None:
    probe = probe_of("llama")
    for other in ((4, 0), (0, 4), (-1, 0)):
        with pytest.raises(ModelError, match="found for another model"):
            probe.looked_at(((0, 0), other))
