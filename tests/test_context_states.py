"""Compressed contexts where something is odd: padding beside a question, states without keys, numbers that are none."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
from architectures import small
from contexts import CONTEXT, IDS, compressed

import longctx.kv
from longctx.backend import compressing, parts
from longctx.backend.attaching import attached
from longctx.backend.bounded import BoundedCache
from longctx.errors import CacheError, ModelError
from longctx.keys import Asked, Choice, Index
from longctx.kv.full import Full

pytestmark = pytest.mark.usefixtures("one_thread")


class Named(Full):
    """Names every slot, so that each is looked up, in an order that is none."""

    def choose(self, index: Index, asked: Asked) -> Choice:
        slots = torch.arange(index.tokens).roll(5)
        return Choice(slots.expand(*asked.rows.shape[:2], -1))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_is_named_is_read_as_if_it_were_all(family: str) -> None:
    """By the road on which a choice is read: a policy that chooses everything says so, and is not asked to name it."""
    model = tiny.model(family, **({"sliding_window": None} if family == "mistral" else {}))
    ids = IDS[0, :CONTEXT].tolist()
    layers, queries = compressing.read(model, ids, 0, 32)
    context = compressing.indexed(model, layers, queries, ids, Named(), CONTEXT)
    assert any(held.index is not None for held in context.layers)
    for count in (1, 2, IDS.shape[1] - CONTEXT):
        with torch.inference_mode(), attached(model):
            expected = model(IDS[:, : CONTEXT + count]).logits[:, CONTEXT:]
            seen = model(IDS[:, CONTEXT : CONTEXT + count], past_key_values=BoundedCache(context)).logits
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("policy", ["squeezed:budget=24,sinks=2,recent=4,clusters=0.2", "oracle:budget=20"])
def test_padding_beside_a_question_is_no_part_of_the_report(policy: str) -> None:
    model = tiny.model("qwen2")
    context = longctx.kv.compress(model, IDS[:, :CONTEXT], policy)
    questions = [IDS[:, CONTEXT : CONTEXT + 3], IDS[:, CONTEXT + 3 : CONTEXT + 17]]
    alone = []
    for question in questions:
        with torch.inference_mode(), context.attached(model, audit_every=1) as cache:
            model(question, past_key_values=cache)
            alone.append(cache.report())
    rows = torch.full((2, 14), 7)
    mask = torch.ones(2, CONTEXT + 14, dtype=torch.long)
    rows[0, 11:], rows[1] = questions[0][0], questions[1][0]
    mask[0, CONTEXT : CONTEXT + 11] = 0
    with torch.inference_mode(), context.attached(model, audit_every=1) as cache:
        places = (mask.cumsum(-1) - 1)[:, CONTEXT:]
        model(rows, attention_mask=mask, position_ids=places, past_key_values=cache)
        both = cache.report()
    for name in ("unread_share", "unread_bound", "true_unread_share"):
        means = [getattr(one, name) for one in alone]
        if None not in means:
            assert getattr(both, name) == pytest.approx(sum(means) / 2, rel=1e-4)
    assert both.read_keys == pytest.approx(sum(one.read_keys for one in alone) / 2)
    if both.above_bound is not None:
        rows_above = [one.above_bound * count for one, count in zip(alone, (3, 14), strict=True)]
        assert both.above_bound == pytest.approx(sum(rows_above) / 17, abs=1e-3)


@pytest.mark.parametrize("option", ["mode=paper", "mass=0.5"])
def test_a_block_of_padding_alone_chooses_for_nobody(option: str) -> None:
    model = tiny.model("qwen2")
    context = longctx.kv.compress(model, IDS[:, :CONTEXT], f"squeezed:budget=30,sinks=2,recent=4,clusters=0.2,{option}")
    short = IDS[:, CONTEXT : CONTEXT + 3]
    long = torch.randint(4, 470, (1, 80), generator=torch.Generator().manual_seed(3))

    def asked(*passes: torch.Tensor, **given: torch.Tensor) -> list[tuple[float, float]]:
        found = []
        with torch.inference_mode(), context.attached(model) as cache:
            for ids in passes:
                model(ids, past_key_values=cache, **given)
                report = cache.report()
                found.append((report.read_keys, report.unread_share or 0.0))
        return found

    ((*few,),), (first, half) = asked(short), asked(long[:, :64], long[:, 64:])
    second = [2 * both - one for one, both in zip(first, half, strict=True)]
    rows, mask = torch.full((2, 80), 7), torch.ones(2, CONTEXT + 80, dtype=torch.long)
    rows[0, 77:], rows[1], mask[0, CONTEXT : CONTEXT + 77] = short[0], long[0], 0
    places = (mask.cumsum(-1) - 1)[:, CONTEXT:]
    (together,) = asked(rows, attention_mask=mask, position_ids=places)
    expected = [(one + (own + other) / 2) / 2 for one, own, other in zip(first, few, second, strict=True)]
    assert together == pytest.approx(expected, rel=1e-3)


def test_states_that_are_no_keys_are_taken_back_whole_or_not_at_all() -> None:
    model = tiny.hybrid()
    context = longctx.kv.compress(model, IDS[:, :CONTEXT], "full", allow_partial=True)
    with torch.inference_mode(), context.attached(model) as cache:
        expected = model(IDS[:, CONTEXT:], past_key_values=cache).logits
        before = cache.lengths
        with pytest.raises(CacheError, match=r"layers \[0, 1, 2\] keep no keys .*rewind\(\)"):
            cache.crop(-1)
        assert cache.lengths == before
        for again in (cache.reset, cache.rewind):
            again()
            assert torch.equal(model(IDS[:, CONTEXT:], past_key_values=cache).logits, expected)


def test_a_context_elsewhere_than_the_model_is_refused() -> None:
    model = tiny.model("llama")
    held = compressed(model)
    away = [dataclasses.replace(layer, keys=layer.keys.to("meta")) for layer in held._context.layers]
    held._context = dataclasses.replace(held._context, layers=tuple(away))
    with pytest.raises(CacheError, match="the context is on meta and the model on cpu"), held.attached(model):
        pass


@pytest.mark.parametrize(
    "policy", ["full", "quest:budget=40", "snapkv:budget=40,window=16", "squeezed:budget=40,recent=8"]
)
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("family", ["llama", "gemma3"])  # the first layer of the latter sees a window
def test_keys_that_are_no_numbers_are_found_when_the_text_is_read(policy: str, number: float, family: str) -> None:
    model = tiny.model(family)
    with torch.no_grad():  # of a token that no trial of the model has
        model.get_input_embeddings().weight[IDS[0, CONTEXT - 1], 3] = number
    with pytest.raises(ModelError, match="layer 0 gave keys or values that are not finite within the first 70 tokens"):
        compressed(model, policy)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("lm_infinite:budget=40", "layer 0 gave keys or values that are not finite within the first 70 tokens"),
        # the token is of a later piece, whose rows are looked at before its keys are kept
        ("longheads:budget=40,window=8", "the attention of layer 0 gave numbers that are not finite at position 69"),
    ],
)
def test_keys_that_are_no_numbers_are_found_by_policies_that_read_the_text_too(policy: str, said: str) -> None:
    model = tiny.model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[IDS[0, CONTEXT - 1], 3] = torch.nan
    with pytest.raises(ModelError, match=said):
        compressed(model, policy)


def test_values_that_are_no_numbers_are_found_as_keys_are() -> None:
    good, bad = torch.ones(2, 3, 4), torch.full((2, 3, 4), 1.0)
    bad[1, 2, 3] = torch.inf
    compressing.check_numbers(5, good, good, 70)
    compressing.check_numbers(5, good, torch.full((2, 3, 4), 3e38), 70)  # whose sum is none
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(ModelError, match="layer 5 .* first 70 tokens"):
            compressing.check_numbers(5, *pair, 70)


def test_layers_of_other_attention_are_named_where_they_are_left_alone() -> None:
    model = small("Llama4Text")
    others = [n for n, kind in enumerate(compressing.kinds(model, True)) if kind not in compressing.SEEN]
    context = longctx.kv.compress(model, IDS[:, :CONTEXT], "full", allow_partial=True)
    assert others and context.left_alone == tuple(others)
    assert all(f"{number} (chunked_attention)" in context.warnings[0] for number in others)


def test_flash_attention_is_asked_of_cards_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    has = {torch.device("cuda", 98): (7, 5), torch.device("cuda", 99): (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", has.__getitem__)
    assert [parts._flashes(device) for device in (*has, torch.device("cpu"))] == [False, True, False]
    asked: list[torch.device] = []
    monkeypatch.setattr(parts, "_flashes", lambda device: bool(asked.append(device)))
    query, value = (
        torch.randn(1, 2, 3, 8),
        torch.randn(1, 2, 9, 4),
    )  # of unlike widths, which no kernel of the CPU takes
    parts.part(query, torch.randn(1, 2, 9, 8), value, 1.0)
    assert asked == [query.device]
