"""Models whose layers do otherwise than they look: what does not suit them is refused or left out, and said."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from test_footprint import _SMALL, sharing
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    DiffLlamaConfig,
    DogeConfig,
    JetMoeConfig,
    MarianConfig,
    MiniMaxConfig,
    NemotronConfig,
    PreTrainedModel,
    StableLmConfig,
)

import longctx
from longctx.backend import fitness
from longctx.backend.probe import Probe
from longctx.backend.tokens import Tokens
from longctx.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.randint(4, 470, (1, 60), generator=torch.Generator().manual_seed(0))
DOC = longctx.Document.from_text(" ".join(f"The room code of street {n} is {n * 37 % 101}." for n in range(60)))
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 1}


def made(kind: Any, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    found = AutoModelForCausalLM.from_config(kind(**{**_SMALL, "num_key_value_heads": 2, **changes})).eval()
    with torch.no_grad():
        for weight in found.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.15)
    return found


# what each does that its configuration does not say
ODD = {
    "attends twice in a layer": lambda: made(DiffLlamaConfig),
    "adds to the mask of every token": lambda: made(DogeConfig),
    "repeats its keys behind the cache": lambda: made(
        JetMoeConfig, num_local_experts=4, num_experts_per_tok=2, kv_channels=16
    ),
    "has attention of its own": lambda: made(NemotronConfig),
    "has attention of its own too": lambda: made(StableLmConfig),
    "looks at what follows": lambda: made(BertConfig),
    "counts the layers of its encoder": lambda: made(MarianConfig, num_hidden_layers=6, decoder_layers=4),
}


@pytest.mark.parametrize("what", ODD)
def test_a_bounded_cache_is_refused_where_it_would_say_something_else(what: str) -> None:
    model = ODD[what]()
    for make in (longctx.kv.compress, longctx.kv.read):
        with pytest.raises(ModelError, match="a bounded cache does not suit .*Ask without kv="):
            make(model, IDS)


@pytest.mark.parametrize("what", [*ODD, "two layers have the keys of others"])
def test_answers_come_without_signals_that_cannot_be_had(what: str) -> None:
    model = ODD[what]() if what in ODD else sharing()
    reader = longctx.Reader(model, tiny.tokenizer("system"), encoder=None)
    answer = reader.ask(DOC, "Which code has street 7?", budget_tokens=120, max_new_tokens=4)
    signals = next(step.facts for step in answer.trace if step.name == "select")["signals"]
    left_out = [said for said in answer.warnings if said.startswith("the model's own signals are not used: ")]
    assert (signals == ["words"]) == bool(left_out)
    if signals != ["words"]:  # these attend as others do, only not to a cache: their signals are sound
        assert what == "attends twice in a layer" or what == "adds to the mask of every token", signals


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_usual_families_pass_both_trials(family: str) -> None:
    model = tiny.model(family)
    probe = Probe(model, Tokens(tiny.tokenizer("system")))
    assert fitness._reads(probe) == "" and fitness.readable(probe) is probe
    assert fitness.bounded_kinds(model)
    assert fitness._bounds(model, fitness.kinds(model)) == ""


def test_segments_that_say_something_else_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("gpt_neox")  # of other parts than the known ones
    probe = Probe(model, Tokens(tiny.tokenizer("system")))
    read = Probe.read

    def shifted(self: Probe, segments: Any, depth: int | None = None) -> Any:
        for index, stored in read(self, segments, depth):
            yield index, type(stored)(stored.keys, tuple(v.flip(1) for v in stored.values), stored.position)

    monkeypatch.setattr(Probe, "read", shifted)
    with pytest.raises(ModelError, match="other things behind segments"):
        fitness.readable(probe)
    monkeypatch.undo()
    with pytest.raises(ModelError, match="other things behind segments"):
        fitness.readable(probe)  # known of these weights
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.0)
    assert fitness.readable(probe) is probe


def test_memory_that_is_short_once_says_nothing_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("gpt_neox")

    def short(*given: Any) -> Any:
        raise torch.OutOfMemoryError("short")

    monkeypatch.setattr(fitness, "read", short)
    with pytest.raises(torch.OutOfMemoryError):
        fitness.bounded_kinds(model)
    monkeypatch.undo()
    assert fitness.bounded_kinds(model)


def test_a_model_with_a_kind_of_cache_of_its_own_decodes_with_it() -> None:
    kinds = ["full_attention", "linear_attention"] * 2
    model = made(MiniMaxConfig, head_dim=16, num_local_experts=4, block_size=16, layer_types=kinds)
    out = longctx.generate(model, tiny.tokenizer(), IDS, drafters=["document"], **GREEDY)
    assert torch.equal(out.sequences, model.generate(IDS, do_sample=False, **GREEDY))
    assert out.stats.rows == "off" and out.stats.cache_bytes > 0 and "one token at a time" in out.warnings[0]
