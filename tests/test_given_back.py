"""A model that was read with is given back as it was, whatever happened in between, inside any wrapper."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from probing import LENGTHS, QUESTION, Fresh, check, probe_of, segments, stored_by
from transformers import Gemma3Config, Gemma3ForConditionalGeneration
from wrapping import Wrapper

import longctx
from longctx import Reader
from longctx.backend.attention import NAME, installed
from longctx.backend.probe import Probe
from longctx.errors import ModelError
from longctx.types import Document

pytestmark = pytest.mark.usefixtures("one_thread")


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
    for before in ("sdpa", "eager"):  # what was found out the first time holds the second, and no more than that
        model.set_attn_implementation(before)
        with installed(model):
            with installed(model):
                assert model.config._attn_implementation == NAME
            assert model.config._attn_implementation == NAME
        assert model.config._attn_implementation == before
    with pytest.raises(KeyError), installed(model):
        raise KeyError
    assert model.config._attn_implementation == "eager"


def test_a_part_with_a_configuration_of_its_own_is_switched_each_time() -> None:
    model, part = tiny.model(attention="sdpa"), tiny.model("qwen3", attention="sdpa")
    model.part = part
    for _ in range(2):
        with installed(model):
            assert (model.config._attn_implementation, part.config._attn_implementation) == (NAME, NAME)
        assert (model.config._attn_implementation, part.config._attn_implementation) == ("sdpa", "sdpa")


def test_a_part_that_comes_after_the_first_use_is_switched_too() -> None:
    model, part = tiny.model(attention="sdpa"), tiny.model("qwen3", attention="sdpa")
    with installed(model):
        pass
    model.part = part
    with installed(model):
        assert (model.config._attn_implementation, part.config._attn_implementation) == (NAME, NAME)
    assert (model.config._attn_implementation, part.config._attn_implementation) == ("sdpa", "sdpa")


def test_a_decoder_put_in_after_the_first_use_verifies_the_same_tokens() -> None:
    """With the attention of its own every row would see every row of the draft."""
    model, ids = tiny.model("llama", attention="sdpa"), torch.tensor([[9, 12, 401, 33, 8, 64, 2] * 6])
    options: dict[str, Any] = {"max_new_tokens": 30, "eos_token_id": None, "pad_token_id": 1}
    for _ in range(2):
        expected = model.generate(ids, do_sample=False, **options)
        out = longctx.generate(model, tiny.tokenizer(), ids, drafters=["document"], controller="fixed", **options)
        assert torch.equal(out.sequences, expected) and out.stats.drafted
        model.model = copy.deepcopy(model.model)
        assert model.model.config is not model.config


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
