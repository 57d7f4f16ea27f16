"""The probe against eager attention of a fresh forward, on every family; and the model is given back as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import DynamicCache, Gemma3Config, Gemma3ForConditionalGeneration

from longctx import Reader
from longctx.backend import attention
from longctx.backend.attention import NAME, installed
from longctx.backend.probe import Probe
from longctx.backend.tokens import Tokens
from longctx.errors import ModelError
from longctx.types import Document, Inquiry

pytestmark = pytest.mark.usefixtures("one_thread")
EXACT = 1e-4
LENGTHS = (17, 40, 12, 3)
QUESTION = "Where does the street winter letter go?"


def tokens() -> Tokens:
    return Tokens(tiny.tokenizer("system"))


def probe_of(model: Any) -> Probe:
    return Probe(model, tokens(), "tiny")


def segments(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 470, n).tolist() for n in lengths]


def stored_by(probe: Probe, texts: Sequence[Sequence[int]], depth: int | None = None) -> list[Any]:
    found = dict(probe.read(texts, depth))
    return [found[i] for i in range(len(texts))]


class Fresh:
    """What one eager forward over [prefix + segment + question] says: the definition of right."""

    def __init__(self, model: Any, prefix: Sequence[int], segment: Sequence[int], inquiry: Inquiry) -> None:
        ids = torch.tensor([[*prefix, *segment, *inquiry.ids]])
        with torch.inference_mode():
            out = model(ids, output_attentions=True)
        self.start = len(prefix) + len(segment)
        self.prefix, self.inquiry, self.ids = len(prefix), inquiry, ids[0]
        self.maps = torch.stack([layer[0] for layer in out.attentions]).float()  # [layers, heads, tokens, tokens]
        self.laws = out.logits[0].float().log_softmax(-1)

    @property
    def rows(self) -> np.ndarray:
        """[layers * heads, rows, tokens]"""
        first, last = self.inquiry.rows
        return self.maps[:, :, self.start + first : self.start + last].flatten(0, 1).numpy()

    @property
    def attention(self) -> np.ndarray:
        return self.rows.mean(1)[:, self.prefix : self.start]

    @property
    def likelihood(self) -> np.ndarray:
        first, last = self.inquiry.question
        at = torch.arange(self.start + first, self.start + last)
        return self.laws[at - 1, self.ids[at]].numpy()

    @property
    def next_token(self) -> np.ndarray:
        return self.laws[-1].numpy()


def check(reading: Any, fresh: Fresh, tolerance: float = EXACT) -> None:
    np.testing.assert_allclose(reading.attention, fresh.attention, atol=tolerance, rtol=0)
    np.testing.assert_allclose(reading.likelihood, fresh.likelihood, atol=tolerance * 10, rtol=0)
    np.testing.assert_allclose(reading.next_token, fresh.next_token, atol=tolerance * 10, rtol=0)


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
    for layer, module in enumerate(_layers(model)):
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


# --- the model is given back -------------------------------------------------------------------------------------


def _layers(model: Any) -> Any:
    return model.gpt_neox.layers if hasattr(model, "gpt_neox") else model.model.layers


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def state_of(model: Any) -> dict[str, Any]:
    """Everything a careless reader could leave behind on a model, module by module."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        hooks = {kind: list(getattr(module, kind)) for kind in HOOKS}
        own = sorted(key for key in vars(module) if key != "training" and not key.startswith("_"))
        implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
        found[name] = (hooks, own, module.training, implementation, "forward" in vars(module))
    return found


def logits_of(model: Any) -> torch.Tensor:
    ids = torch.tensor(segments((19,)))
    with torch.inference_mode():
        return model(ids).logits.clone()


LENT = [("eager", torch.float32), ("sdpa", torch.float32), ("sdpa", torch.bfloat16), ("eager", torch.float16)]


@pytest.fixture(params=LENT)
def lent(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A caller's model, which must come back as it was: implementation, hooks, modes, dtype and logits."""
    implementation, dtype = request.param
    model = tiny.model("qwen2", attention=implementation, dtype=dtype)
    model.model.layers[1].register_forward_hook(lambda *_: None)  # the caller's own hook stays, too
    before, logits = state_of(model), logits_of(model)
    yield model
    assert model.config._attn_implementation == implementation and model.dtype == dtype
    assert state_of(model) == before
    assert torch.equal(logits_of(model), logits)


def test_the_model_comes_back_after_reading_and_asking(lent: Any) -> None:
    probe = probe_of(lent)
    stored = stored_by(probe, segments())
    assert len(dict(probe.ask(stored, probe.inquiry(QUESTION, heads=((1, 1),))))) == len(LENGTHS)
    probe.null(probe.inquiry(QUESTION, likelihood=True))


def test_the_model_comes_back_when_the_caller_stops_listening(lent: Any) -> None:
    probe = probe_of(lent)
    texts = segments([400] * 12)
    reading = probe.read(texts)
    _, stored = next(reading)
    reading.close()  # type: ignore[attr-defined]
    asking = probe.ask([stored] * 60, probe.inquiry(QUESTION, heads=None))
    next(asking)
    with pytest.raises(KeyboardInterrupt):
        asking.throw(KeyboardInterrupt())  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, torch.OutOfMemoryError])
def test_the_model_comes_back_when_a_layer_raises(lent: Any, error: type[BaseException]) -> None:
    probe = probe_of(lent)
    stored = stored_by(probe, segments())

    def fail(*_: Any) -> None:
        raise error("in the middle of a layer")

    handle = lent.model.layers[2].mlp.register_forward_hook(fail)
    try:
        with pytest.raises(error):
            list(probe.ask(stored, probe.inquiry(QUESTION, likelihood=True)))
        with pytest.raises(error):
            list(probe.read(segments()))
    finally:
        handle.remove()
    fine = next(probe.ask(stored, probe.inquiry(QUESTION, heads=((0, 0),))))
    assert np.isfinite(fine[1].attention).all()


def test_the_model_comes_back_when_the_progress_callback_is_interrupted(lent: Any) -> None:
    reader = Reader(lent, tiny.tokenizer("system"), encoder=None, calibration=None, segment_tokens=64)
    document = Document.from_text("The street code is in the report. He has the letter. " * 60)

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "reading" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reader.select(document, QUESTION, budget_tokens=200, selector="infiniretri", progress=interrupt)


def test_a_model_in_training_mode_is_read_without_dropout_and_handed_back_in_training_mode() -> None:
    model = tiny.model("llama", attention_dropout=0.5)
    probe = probe_of(model)
    texts = segments((20, 11))
    inquiry = probe.inquiry(QUESTION, heads=None, likelihood=True, next_token=True)
    model.train()
    model.model.layers[1].eval()  # a caller may freeze parts
    before = state_of(model)
    found = dict(probe.ask(stored_by(probe, texts), inquiry))
    assert state_of(model) == before
    for i, text in enumerate(texts):
        check(found[i], Fresh(tiny.model("llama"), probe.prefix, text, inquiry))


class LoRA(torch.nn.Module):
    """What adapters do to a linear layer: wrap it and add a low-rank product."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        torch.manual_seed(base.in_features)
        self.base = base
        self.a = torch.nn.Linear(base.in_features, 4, bias=False)
        self.b = torch.nn.Linear(4, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.b(self.a(x))


class Wrapper(torch.nn.Module):
    """Shaped like PEFT's: holds the model, forwards calls and unknown names to it."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def adapted(attention: str, wrapped: bool = True) -> Any:
    model = tiny.model("llama", attention=attention)
    for layer in model.model.layers:
        layer.self_attn.q_proj = LoRA(layer.self_attn.q_proj)
        layer.self_attn.v_proj = LoRA(layer.self_attn.v_proj)
    return Wrapper(model.eval()) if wrapped else model.eval()


def test_a_model_inside_an_adapters_wrapper_is_read_with_the_adapter_and_given_back() -> None:
    model, eager = adapted("sdpa"), adapted("eager", wrapped=False)
    before, logits = state_of(model), logits_of(model)
    probe = probe_of(model)
    inquiry = probe.inquiry(QUESTION, heads=None, likelihood=True, next_token=True)
    texts = segments()
    found = dict(probe.ask(stored_by(probe, texts), inquiry))
    for i, text in enumerate(texts):
        check(found[i], Fresh(eager, probe.prefix, text, inquiry))
    assert state_of(model) == before and torch.equal(logits_of(model), logits)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an attribute on its way out
def test_a_peft_model_is_read_with_its_adapter_and_given_back() -> None:
    peft = pytest.importorskip("peft")

    def made(attention: str) -> Any:
        settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, task_type="CAUSAL_LM")
        torch.manual_seed(0)
        model = peft.get_peft_model(tiny.model("llama", attention=attention), settings)  # in training mode
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
        return model

    model, eager = made("sdpa"), made("eager").eval()
    before = state_of(model)
    probe = probe_of(model)
    inquiry = probe.inquiry(QUESTION, heads=None, likelihood=True, next_token=True)
    texts = segments((20, 11))
    found = dict(probe.ask(stored_by(probe, texts), inquiry))
    for i, text in enumerate(texts):
        check(found[i], Fresh(eager, probe.prefix, text, inquiry))
        without = Fresh(tiny.model("llama"), probe.prefix, text, inquiry)
        assert np.abs(without.likelihood - found[i].likelihood).max() > 0.01, "the adapter changed nothing"
    assert state_of(model) == before


def test_several_threads_may_read_with_one_model_at_once() -> None:
    """Each pass switches the model's attention for its own time: two at once used to leave it switched for good."""
    model = tiny.model("qwen2", attention="sdpa")
    before = state_of(model)
    probes = [probe_of(model) for _ in range(4)]  # as readers of their own would have
    texts = segments()
    inquiry = probes[0].inquiry(QUESTION, heads=None, likelihood=True, next_token=True)
    expected = {i: Fresh(tiny.model("qwen2"), probes[0].prefix, text, inquiry) for i, text in enumerate(texts)}
    errors: list[BaseException] = []
    start = threading.Barrier(len(probes))

    def work(probe: Probe) -> None:
        try:
            start.wait()
            for _ in range(6):
                found = dict(probe.ask(stored_by(probe, texts), inquiry))
                for i in expected:
                    check(found[i], expected[i])
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            errors.append(error)

    workers = [threading.Thread(target=work, args=(probe,)) for probe in probes]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors, errors[0]
    assert model.config._attn_implementation == "sdpa" != NAME
    assert state_of(model) == before


def test_nested_switches_end_where_they_began() -> None:
    model = tiny.model(attention="sdpa")
    with installed(model):
        with installed(model):
            assert model.config._attn_implementation == NAME
        assert model.config._attn_implementation == NAME
    assert model.config._attn_implementation == "sdpa"


def test_a_model_of_several_parts_gets_each_parts_own_implementation_back() -> None:
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=tiny.config("gemma3").to_dict(),
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        attn_implementation={"text_config": "eager", "vision_config": "sdpa"},
    )
    model = Gemma3ForConditionalGeneration(config).eval()

    def own() -> list[str]:
        parts = (config, config.text_config, config.vision_config)
        return [part._attn_implementation for part in parts]

    before = own()
    assert before[1:] == ["eager", "sdpa"]
    probe = probe_of(model)
    inquiry = probe.inquiry(QUESTION, heads=None, likelihood=True, next_token=True)
    texts = segments((20, 11))
    found = dict(probe.ask(stored_by(probe, texts), inquiry))
    assert own() == before
    model.set_attn_implementation("eager")
    for i, text in enumerate(texts):
        check(found[i], Fresh(model, probe.prefix, text, inquiry))


def test_a_model_outside_the_attention_interface_is_refused_unharmed() -> None:
    class Stubborn(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = tiny.config("llama")
            self.config._attn_implementation = "eager"

        def set_attn_implementation(self, name: str) -> None:
            """As transformers does for models of the old kind: a log line and no change."""

    stubborn = Stubborn()
    model: Any = stubborn
    with pytest.raises(ModelError, match="Stubborn does not take its attention"), installed(model):
        raise AssertionError("entered")
    assert stubborn.config._attn_implementation == "eager"


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
