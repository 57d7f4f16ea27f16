"""Models whose layers do otherwise than they look: what does not suit them is refused or left out, and said."""

from __future__ import annotations

from pathlib import Path
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
    Gemma4TextConfig,
    GptOssConfig,
    JetMoeConfig,
    MarianConfig,
    MiniMaxConfig,
    NemotronConfig,
    PreTrainedModel,
    StableLmConfig,
)

import longctx
from longctx.backend import fitness
from longctx.backend.capability import capability
from longctx.backend.probe import Probe
from longctx.backend.target import RowTarget
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", ODD)
def test_a_bounded_cache_is_refused_where_it_would_say_something_else(what: str, dtype: torch.dtype) -> None:
    model = ODD[what]().to(dtype)
    for make in (longctx.kv.compress, longctx.kv.read):
        with pytest.raises(ModelError, match="a bounded cache does not suit .*Ask without kv="):
            make(model, IDS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", ODD)
def test_answers_come_without_signals_that_cannot_be_had(what: str, dtype: torch.dtype) -> None:
    model = ODD[what]().to(dtype)
    reader = longctx.Reader(model, tiny.tokenizer("system"), encoder=None)
    answer = reader.ask(DOC, "Which code has street 7?", budget_tokens=120, max_new_tokens=4)
    signals = next(step.facts for step in answer.trace if step.name == "select")["signals"]
    left_out = [said for said in answer.warnings if said.startswith("the model's own signals are not used: ")]
    # three of them attend as others do once no bounded cache is in between: their signals are sound
    sound = {"attends twice in a layer", "adds to the mask of every token", "repeats its keys behind the cache"}
    assert (signals == ["words"]) == bool(left_out) == (what not in sound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_usual_families_pass_both_trials(family: str, dtype: torch.dtype) -> None:
    model = tiny.model(family, dtype=dtype)
    probe = Probe(model, Tokens(tiny.tokenizer("system")))
    assert fitness._reads(probe) == "" and fitness.readable(probe) is probe
    assert fitness.bounded_kinds(model)
    assert fitness._bounds(model, fitness.kinds(model)) == ""


@pytest.mark.parametrize("seed", range(8))
def test_experts_that_rounding_changes_refuse_no_model(seed: int) -> None:
    torch.manual_seed(seed)
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8}
    model = AutoModelForCausalLM.from_config(GptOssConfig(**{**_SMALL, "num_key_value_heads": 2, **experts})).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.15)
    model.to(torch.bfloat16)
    assert fitness.bounded_kinds(model) and fitness.readable(Probe(model, Tokens(tiny.tokenizer("system"))))
    assert capability(model).rows == "tree"


def test_what_a_hook_does_is_no_fact_about_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("gpt_neox")

    def mine(module: Any, args: Any, out: Any) -> Any:
        raise ValueError("mine")

    for hook in (mine, lambda module, args, out: 0 * out):
        handle = model.gpt_neox.layers[1].mlp.register_forward_hook(hook)
        monkeypatch.setattr(fitness, "said_by_stock", lambda model, texts: torch.randn(len(texts), tiny.VOCAB))
        with pytest.raises(ModelError, match="a bounded cache does not suit"):
            fitness.bounded_kinds(model)
        monkeypatch.undo()
        handle.remove()
        assert fitness.bounded_kinds(model)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(1.0)  # what was found just now holds no more


def test_a_model_that_always_carries_hooks_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("gpt_neox")
    hook = model.gpt_neox.layers[1].mlp.register_forward_hook(lambda module, args, out: out)
    assert fitness.bounded_kinds(model)
    monkeypatch.setattr(fitness, "_bounds", lambda model, found: pytest.fail("tried again"))
    assert fitness.bounded_kinds(model)
    hook.remove()
    with pytest.raises(pytest.fail.Exception):
        fitness.bounded_kinds(model)


def test_a_model_is_tried_once_and_not_for_every_question(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    reads = fitness._reads
    monkeypatch.setattr(fitness, "_reads", lambda probe: tried.append(1) or reads(probe))
    for model in (made(NemotronConfig), made(BertConfig), tiny.model("gpt_neox")):
        reader = longctx.Reader(model, tiny.tokenizer("system"), encoder=None, calibration=None)
        for question in ("Which code has street 7?", "Which code has street 9?"):
            reader.select(DOC, question, budget_tokens=120)
        assert len(tried) == 1
        tried.clear()


def test_a_tokenizer_that_does_not_go_with_a_model_says_nothing_of_the_next() -> None:
    model, wrong = tiny.model("gpt_neox"), tiny.tokenizer("system")
    wrong.add_tokens([*(f"zz{n}" for n in range(5)), "Where is it?"])
    with pytest.raises(ModelError, match="IndexError"):
        fitness.readable(Probe(model, Tokens(wrong)))
    assert fitness.readable(Probe(model, Tokens(tiny.tokenizer("system"))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_segments_that_say_something_else_are_noticed(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    model = tiny.model("gpt_neox", dtype=dtype)  # of other parts than the known ones
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


def sharing_two_widths() -> PreTrainedModel:
    """As ``sharing``, and layers that see a window have other heads than those that see everything."""
    sizes = {"head_dim": 16, "global_head_dim": 32, "sliding_window": 16, "num_kv_shared_layers": 2}
    own = {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": tiny.VOCAB}
    return made(Gemma4TextConfig, layer_types=["sliding_attention", "full_attention"] * 2, **sizes, **own)


@pytest.mark.parametrize("model", [sharing, sharing_two_widths])
def test_a_prompt_beyond_the_window_is_read_where_some_layers_see_its_last_row_alone(model: Any) -> None:
    found = model()
    ids = torch.randint(4, 470, (1, 90), generator=torch.Generator().manual_seed(3))
    target = RowTarget(found, 120)
    with torch.inference_mode():
        expected = found(ids).logits[0]
    ours = []
    for piece in (ids[0, :40].tolist(), ids[0, 40:80].tolist()):
        ours.append(target.score(piece, range(-1, len(piece) - 1), 1))
        target.commit(range(len(piece)))
    torch.testing.assert_close(torch.cat(ours), expected[[39, 79]], rtol=1e-4, atol=1e-4)
    # a tree whose last rows are wanted: the pending tokens in front of it are not
    rows, parents = ids[0, 80:90].tolist(), [-1, 0, 1, 1, 3, 4, 5, 6, 7, 8]
    said = target.score(rows, parents, 6)
    path = [*range(2), *range(3, 10)]
    with torch.inference_mode():
        plain = found(torch.cat((ids[:, :80], ids[:, [80 + row for row in path]]), 1)).logits[0, -6:]
    torch.testing.assert_close(said, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", [sharing, sharing_two_widths])
def test_layers_that_look_at_the_keys_of_others_are_drafted_for_and_read(model: Any, tmp_path: Path) -> None:
    found, long = model(), {**GREEDY, "max_new_tokens": 40}  # short answers ask for no guesses
    out = longctx.generate(found, tiny.tokenizer(), IDS, drafters=["document", "recycling"], controller="fixed", **long)
    assert torch.equal(out.sequences, found.generate(IDS, do_sample=False, **long))
    assert out.stats.rows == "tree" and out.stats.accepted
    with pytest.raises(ModelError, match=r"2 \(shared_attention\), 3 \(shared_attention\)"):
        longctx.kv.compress(found, IDS)
    reader = longctx.Reader(found, tiny.tokenizer("system"), encoder=None)
    asked: dict[str, Any] = {"budget_tokens": 120}
    for selector in ("auto", "infiniretri", "xl3m"):
        fresh = reader.select(DOC, "Which code has street 7?", selector=selector, **asked)
        assert not [said for said in fresh.warnings if "signals" in said]
        for residency in ("disk", "ram"):
            folder = tmp_path / f"{selector[:4]}-{residency}"
            reader.compile(DOC, path=folder, segment_kv=residency)
            again = reader.select(reader.load(folder), "Which code has street 7?", selector=selector, **asked)
            assert [span.start for span in again.spans] == [span.start for span in fresh.spans]
    small = reader.compile(DOC, path=tmp_path / "small", segment_kv="disk", segment_form="int8")
    assert reader.select(small, "Which code has street 7?", selector="xl3m", **asked).spans
    with pytest.raises(ModelError, match="no keys that could stand for a segment"):
        reader.select(DOC, "Which code has street 7?", selector="longheads", **asked)
