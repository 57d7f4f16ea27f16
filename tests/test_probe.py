"""The probe against eager attention of a fresh forward, on every family."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from probing import EXACT, QUESTION, Fresh, check, layers_of, probe_of, segments, stored_by
from transformers import DynamicCache

from longctx.backend import attention
from longctx.backend.attention import installed
from longctx.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("family", "loaded_as"),
    # transformers itself refuses Gemma 2 under sdpa, because of its soft caps
    [(f, a) for f in tiny.FAMILIES for a in ("eager", "sdpa") if (f, a) != ("gemma2", "sdpa")],
)
def test_readings_equal_an_eager_forward_for_segments_of_any_length_and_every_later_question(
    family: str, loaded_as: str
) -> None:
    """One batch of segments of unlike length is left-padded; the second and third question use a warm cache."""
    eager = tiny.model(family)
    probe = probe_of(tiny.model(family, attention=loaded_as))
    texts = segments()
    stored = stored_by(probe, texts)
    for question in (QUESTION, "What code?", "Who, of all of them, did not keep a letter?"):
        inquiry = probe.inquiry(question, heads=None, likelihood=True, next_token=True, keep_rows=True)
        found = dict(probe.ask(stored, inquiry))
        assert sorted(found) == list(range(len(texts)))
        for i, text in enumerate(texts):
            fresh = Fresh(eager, probe.prefix, text, inquiry)
            assert fresh.rows.max() > 0.1, "the model's attention is flat: the comparison would say little"
            check(found[i], fresh)
            np.testing.assert_allclose(found[i].rows, fresh.rows, atol=EXACT, rtol=0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_stopping_early_gives_the_same_rows_in_the_order_asked_for(family: str) -> None:
    eager = tiny.model(family)
    model = tiny.model(family)
    probe = probe_of(model)
    wanted = ((2, 3), (0, 1), (2, 0), (1, 2))
    run: list[int] = []
    for layer, module in enumerate(layers_of(model)):
        module.register_forward_hook(lambda *_, layer=layer: run.append(layer))
    texts = segments()
    inquiry = probe.inquiry(QUESTION, heads=wanted)
    found = dict(probe.ask(stored_by(probe, texts, depth=3), inquiry))
    assert set(run) == {0, 1}, "a layer whose output nobody asked for was finished"
    for i, text in enumerate(texts):
        fresh = Fresh(eager, probe.prefix, text, inquiry)
        picked = fresh.attention[[layer * 4 + head for layer, head in wanted]]
        np.testing.assert_allclose(found[i].attention, picked, atol=EXACT, rtol=0)
        assert found[i].likelihood.size == 0 and found[i].next_token is None and found[i].rows is None


def test_rows_kept_one_by_one_come_in_the_order_of_the_heads_asked_for() -> None:
    probe = probe_of(tiny.model())
    stored = stored_by(probe, segments((7,)))
    every = probe.inquiry(QUESTION, heads=None, keep_rows=True, through_cue=True)
    some = replace(every, heads=((3, 1), (0, 2)))
    whole, part = next(probe.ask(stored, every))[1], next(probe.ask(stored, some))[1]
    assert whole.rows is not None and part.rows is not None
    np.testing.assert_allclose(part.rows, whole.rows[[3 * 4 + 1, 2]], atol=1e-6)
    assert every.rows[1] == len(every.ids) > every.question[1]


def test_heads_that_the_model_does_not_have_are_refused() -> None:
    probe = probe_of(tiny.model())
    for heads in (((4, 0),), ((0, 4),), ((-1, 0),)):
        with pytest.raises(ModelError, match="4 layers of 4 heads"):
            probe.inquiry(QUESTION, heads=heads)


def test_no_segment_at_all_is_read_as_the_question_alone() -> None:
    model = tiny.model("qwen3")
    probe = probe_of(model)
    inquiry = probe.inquiry(QUESTION, heads=((1, 1),), likelihood=True, next_token=True)
    alone = probe.null(inquiry)
    fresh = Fresh(tiny.model("qwen3"), probe.prefix, [], inquiry)
    np.testing.assert_allclose(alone.likelihood, fresh.likelihood, atol=1e-3)
    np.testing.assert_allclose(alone.next_token, fresh.next_token, atol=1e-3)
    assert alone.attention.shape == (1, 0)


def test_segments_read_to_full_depth_after_a_shallow_pass_are_not_mixed_with_its_prefix() -> None:
    probe = probe_of(tiny.model())
    texts = segments((6, 4))
    stored_by(probe, texts, depth=1)
    inquiry = probe.inquiry(QUESTION, heads=None, likelihood=True, next_token=True)
    found = dict(probe.ask(stored_by(probe, texts), inquiry))
    for i, text in enumerate(texts):
        check(found[i], Fresh(tiny.model(), probe.prefix, text, inquiry))


def test_many_segments_go_through_in_several_batches_with_nothing_lost() -> None:
    model = tiny.model(num_hidden_layers=2)
    probe = probe_of(model)
    texts = segments(np.random.default_rng(1).integers(1, 300, 60).tolist())
    inquiry = probe.inquiry(QUESTION, heads=None, likelihood=True)
    stored = stored_by(probe, texts)
    together = dict(probe.ask(stored, inquiry))
    assert sorted(together) == list(range(60))
    for i in range(0, 60, 7):
        alone = next(probe.ask([stored[i]], inquiry))[1]
        np.testing.assert_allclose(together[i].attention, alone.attention, atol=EXACT)
        np.testing.assert_allclose(together[i].likelihood, alone.likelihood, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_half_precision_stays_within_its_rounding(family: str, dtype: torch.dtype) -> None:
    exact = tiny.model(family)
    probe = probe_of(tiny.model(family, attention="sdpa" if family != "gemma2" else "eager", dtype=dtype))
    texts = segments()
    inquiry = probe.inquiry(QUESTION, heads=None, likelihood=True, next_token=True)
    found = dict(probe.ask(stored_by(probe, texts), inquiry))
    coarse = 64 * torch.finfo(dtype).eps  # weights and activations are rounded some dozen times on the way
    for i, text in enumerate(texts):
        fresh = Fresh(exact, probe.prefix, text, inquiry)
        assert np.abs(found[i].attention - fresh.attention).mean() < coarse / 8
        assert np.abs(found[i].likelihood - fresh.likelihood).mean() < coarse
        assert found[i].attention.dtype == found[i].likelihood.dtype == np.float32


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_prompt_fed_in_pieces_through_the_attention_function_equals_one_eager_pass(family: str) -> None:
    """The trap: without a registered mask the one-shot pass is right and pieces and padding are far off."""
    eager, model = tiny.model(family), tiny.model(family, attention="sdpa" if family != "gemma2" else "eager")
    rows = segments((29, 21))
    with torch.inference_mode():
        expected = [eager(torch.tensor([row])).logits[0] for row in rows]
    width = 29
    ids = torch.ones(2, width, dtype=torch.long)
    seen = torch.zeros(2, width, dtype=torch.long)
    for b, row in enumerate(rows):
        ids[b, width - len(row) :], seen[b, width - len(row) :] = torch.tensor(row), 1
    positions = (seen.cumsum(-1) - 1).clamp(min=0)
    for mask, batch in ((None, slice(0, 1)), (seen, slice(0, 2))):
        for pieces in ((29,), (12, 16, 1), (1, 1, 27), (5, 5, 5, 5, 5, 4)):
            cache, got, at = DynamicCache(config=model.config), [], 0
            with torch.inference_mode(), installed(model):
                for piece in pieces:
                    part = slice(at, at + piece)
                    at += piece
                    out = model(
                        ids[batch, part],
                        attention_mask=None if mask is None else mask[:, :at],
                        position_ids=positions[batch, part],
                        past_key_values=cache,
                        use_cache=True,
                    )
                    got.append(out.logits)
            logits = torch.cat(got, 1)
            for b in range(logits.shape[0]):
                own = logits[b, width - len(rows[b]) :]
                assert float((own - expected[b]).abs().max()) < 2e-3, f"{pieces}, row {b}"


def test_a_mask_that_differs_from_head_to_head_is_obeyed() -> None:
    torch.manual_seed(0)
    module = torch.nn.Module()
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    mask = torch.rand(2, 4, 5, 9) > 0.4
    mask[..., 0] = True
    for rows in (5, 1):
        got, _ = attention.attend(module, query[:, :, :rows], key, value, mask[:, :, :rows])
        scores = query[:, :, :rows] @ key.repeat_interleave(2, 1).transpose(-1, -2) * 8**-0.5
        weights = scores.masked_fill(~mask[:, :, :rows], -torch.inf).softmax(-1)
        expected = (weights @ value.repeat_interleave(2, 1)).transpose(1, 2)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_an_attention_sink_takes_its_share_and_shows_in_no_row() -> None:
    torch.manual_seed(0)
    query, key, value, sinks = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 8), torch.randn(4)
    mask = torch.ones(1, 1, 3, 7, dtype=torch.bool).tril(4)
    seen: dict[int, torch.Tensor] = {}
    tap = attention.Tap({0: torch.tensor([3, 1])}, slice(0, 3), seen.__setitem__)
    module = torch.nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    got, _ = attention.attend(module, query, key, value, mask, s_aux=sinks, **{attention.TAP: tap})
    scores = (query @ key.repeat_interleave(2, 1).transpose(-1, -2) * 8**-0.5).masked_fill(~mask, -torch.inf)
    weights = torch.cat((scores, sinks.view(1, 4, 1, 1).expand(1, 4, 3, 1)), -1).softmax(-1)[..., :-1]
    torch.testing.assert_close(got, (weights @ value.repeat_interleave(2, 1)).transpose(1, 2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen[0], weights[:, [3, 1]], atol=1e-5, rtol=1e-5)
    assert float(weights.sum(-1).max()) < 1


@pytest.mark.parametrize("form", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("heads", [None, torch.tensor([3, 0])])
def test_rows_are_shown_in_the_format_that_multiplies_fast(
    form: torch.dtype, heads: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "arithmetic", lambda dtype, device: form)
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, n, 9, 16, generator=generator).bfloat16() for n in (4, 2))
    mask = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()
    mask[..., 3] = False
    how = (mask, 0.3, 5.0, torch.randn(4, generator=generator))
    own, exact = (attention.Seen(one, other, *how) for one, other in ((query, key), (query.float(), key.float())))
    seen: dict[int, torch.Tensor] = {}
    attention.Tap({0: heads}, slice(2, 7), seen.__setitem__).see(0, own)
    wanted, stock = (one.probabilities(slice(2, 7), heads) for one in (exact, own))
    assert seen[0].dtype == torch.float32 and seen[0].shape == (2, 4 if heads is None else 2, 5, 9)
    torch.testing.assert_close(seen[0], wanted, atol=0.02, rtol=0)
    assert torch.equal(seen[0], wanted if form == torch.float32 else stock)
    assert not torch.equal(stock, wanted), "layers of the model itself multiply as they are loaded"


def test_layers_that_keep_no_keys_are_refused_by_name() -> None:
    model = tiny.model("qwen2")
    model.config.layer_types = ["linear_attention", "full_attention"] * 2
    with pytest.raises(ModelError, match="linear_attention"):
        probe_of(model)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_a_window_that_holds_the_segment_but_not_the_prefix_too_is_kept_to(family: str) -> None:
    """Layers that see a window go by the model's own forward as soon as prefix and segment together pass it."""
    kinds = ["full_attention", *["sliding_attention"] * 3]
    more = {} if family == "mistral" else {"use_sliding_window": True, "layer_types": kinds}
    length = len(probe_of(tiny.model(family)).prefix)
    settings = {"sliding_window": 2 * length, **more}
    probe, text = (
        probe_of(tiny.model(family, attention="sdpa", **settings)),
        [7 * i % 400 + 9 for i in range(length + 3)],
    )
    (stored,) = stored_by(probe, [text])
    with torch.inference_mode():
        whole = tiny.model(family, **settings)(torch.tensor([[*probe.prefix, *text]]), use_cache=True).past_key_values
    for layer, (keys, values) in enumerate(zip(stored.keys, stored.values, strict=True)):
        far = min(len(text), whole.layers[layer].keys.shape[2])  # a layer of transformers keeps its window alone
        torch.testing.assert_close(keys[:, -far:], whole.layers[layer].keys[0, :, -far:], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(values[:, -far:], whole.layers[layer].values[0, :, -far:], atol=1e-4, rtol=1e-4)
