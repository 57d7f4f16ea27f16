"""Our own methods as programs under test, on a tiny model: what each reports, and when it changed nothing."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import tiny

import longctx
from longctx.pipelines import bench_own
from longctx.pipelines.haystack import digest
from longctx.pipelines.peers import _models, infini_retri, kvpress
from longctx.pipelines.peers._serve import Refused

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = "".join(f"The code of room {i} is river {i * 3}. " for i in range(40))
QUESTION = "What is the code of room 7?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"), num_hidden_layers=2, max_position_embeddings=1024)


def load(folder: Path, kind: str, spec: str, budget: int | None = None, **options: Any) -> bench_own.Own:
    wanted = {"model": str(folder), "dtype": "float32", "device": "cpu", "threads": 1, "beginning": TEXT[:500]}
    return bench_own.load({**wanted, "kind": kind, "spec": spec, "budget": budget, "options": options})


def ask(own: Any, text: str = TEXT, new: int = 6) -> dict[str, Any]:
    asked = {"text": text, "document": digest(text), "query": QUESTION, "question": QUESTION, "max_new_tokens": new}
    found: dict[str, Any] = own.answer(asked)
    return found


def test_full_is_what_all_others_are_compared_with(folder: Path) -> None:
    own = load(folder, "hf", "full")
    found = ask(own)
    measured = found["measured"]
    assert found["unchanged"] is None and found["spans"] == ((0, len(TEXT)),)
    assert measured["passes"] == measured["new_tokens"] <= 6 and measured["prompt_tokens"] > 400
    assert 0 < found["seconds"]["prefill"] and 0 < found["seconds"]["decode"]
    assert own.facts["versions"]["longctx"] == longctx.__version__ and len(own.facts["fingerprint"]) == 16
    with pytest.raises(Refused, match="window"):
        ask(own, TEXT * 5)


def test_truncated_changes_something_only_beyond_the_window(folder: Path) -> None:
    own = load(folder, "hf", "truncated")
    assert ask(own)["unchanged"].startswith("nothing was cut off")
    found = ask(own, TEXT * 5)
    assert found["unchanged"] is None and len(found["spans"]) == 2


def test_a_selector_changes_nothing_when_its_budget_holds_the_text(folder: Path) -> None:
    own = load(folder, "selector", "bm25", 200)
    found = ask(own)
    assert found["unchanged"] is None and 0 < found["measured"]["selected_tokens"] <= 200
    assert not found["reused"] and found["seconds"]["compile"] > 0
    assert ask(own)["reused"]
    whole = ask(own, TEXT[:200])
    assert whole["unchanged"] == "the budget holds the whole text" and not whole["reused"]


def test_a_policy_says_how_many_keys_were_read(folder: Path) -> None:
    found = ask(load(folder, "kv", "snapkv:keep=0.25"))
    assert found["unchanged"] is None
    assert found["measured"]["kept_tokens"] < 0.5 * found["measured"]["context_tokens"]
    assert ask(load(folder, "kv", "full"))["unchanged"] == "every key was read"


def test_a_context_that_was_read_for_an_earlier_question_is_said_to_be(folder: Path) -> None:
    """The reader keeps the last one: a second question about the same text does not pay for it."""
    own = load(folder, "kv", "snapkv:keep=0.25")
    first, second, other = ask(own), ask(own), ask(own, TEXT[:700])
    assert [found["reused"] for found in (first, second, other)] == [False, True, False]


def test_a_share_of_a_short_text_that_is_no_budget_is_refused_and_the_program_lives(folder: Path) -> None:
    own = load(folder, "kv", "snapkv:keep=0.05")
    with pytest.raises(Refused, match="always read"):
        ask(own, TEXT[:300])
    with pytest.raises(Refused, match="no share"):
        ask(load(folder, "kv", "snapkv:keep=7"))


@pytest.mark.parametrize(("kind", "spec"), [("kv", "snapkv:keep=0.25"), ("drafters", "ngram")])
def test_reading_and_decoding_are_told_apart_and_tokens_counted_as_generate_counts_them(
    folder: Path, kind: str, spec: str
) -> None:
    found = ask(load(folder, kind, spec))
    seconds = found["seconds"]
    assert 0 < seconds["decode"] < seconds["prefill"] + seconds["decode"]
    if kind == "drafters":
        plain = ask(load(folder, "hf", "full"))
        assert found["measured"]["new_tokens"] == plain["measured"]["new_tokens"]


@pytest.mark.parametrize(("kind", "spec"), [("hf", "full"), ("kv", "snapkv:keep=0.25"), ("drafters", "ngram")])
def test_the_first_question_does_not_pay_for_the_first_pass(
    folder: Path, kind: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    monkeypatch.setattr(_models, "check", lambda model, ids: passes.append(len(ids)))
    load(folder, kind, spec)
    assert passes == [64]


def test_drafts_are_counted_and_their_lack_is_said(folder: Path) -> None:
    full = ask(load(folder, "hf", "full"))["text"]
    found = ask(load(folder, "drafters", "document"))
    assert found["text"] == full and found["unchanged"] == (
        None if found["measured"]["drafted"] else "no token was drafted"
    )
    nothing = ask(load(folder, "drafters", "lookup"), "one two three four.", new=1)
    assert nothing["measured"]["drafted"] == 0 and nothing["unchanged"] == "no token was drafted"


def test_prompt_lookup_and_an_assistant_say_what_the_model_says(folder: Path) -> None:
    full = ask(load(folder, "hf", "full"), new=40)  # long enough for a token that was said before
    looked = ask(load(folder, "hf", "prompt_lookup", tokens=4, ngram=1), new=40)
    assisted = ask(load(folder, "hf", "assisted", model=str(folder)), new=40)
    assert looked["text"] == assisted["text"] == full["text"]
    assert looked["unchanged"] is None and assisted["unchanged"] is None
    seldom = ask(load(folder, "hf", "prompt_lookup", tokens=4, ngram=1), new=1)
    assert seldom["unchanged"] == "no token was drafted"
    assert assisted["measured"]["passes"] < full["measured"]["passes"], "a model that drafts for itself is right"


def test_what_is_drafted_before_the_prompt_is_read_counts(folder: Path) -> None:
    """An assistant drafts first: all may be said in one pass, whose seconds are not those of reading alone."""
    found = ask(load(folder, "hf", "assisted", model=str(folder)), new=3)
    assert found["measured"]["passes"] < found["measured"]["new_tokens"] == 3
    assert found["unchanged"] is None and found["seconds"] == {}


def test_a_peer_loads_the_same_model_and_an_old_release_is_told_the_rotary_base(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    ids = list(range(5, 45))
    asked = {"model": str(folder), "dtype": "float32", "device": "cpu", "threads": 1}
    model, tokenizer = _models.load(asked, "eager")
    assert _models.check(model, ids) == load(folder, "hf", "full").check(ids)
    assert set(tokenizer("room")) == {"input_ids", "attention_mask"}
    assert tokenizer.chat_template and not model.generation_config.do_sample
    seen: dict[str, Any] = {}

    def keep(where: str, config: Any, **more: Any) -> Any:
        seen.update(theta=getattr(config, "rope_theta", None), scaling=getattr(config, "rope_scaling", None))
        return model

    monkeypatch.setattr(transformers, "__version__", "4.57.6")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", keep)
    _models.load(asked, "eager")
    assert seen["theta"] == model.config.rope_parameters["rope_theta"]


class HalfPipeline:
    """What the wrapper calls of kvpress: half of every layer's keys are dropped, then tokens are decoded."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def _forward(self, ids: dict[str, Any], new: int, press: Any, cache: Any) -> list[str]:
        self.model.model(input_ids=ids["context_ids"], past_key_values=cache)
        kept = int(ids["context_ids"].shape[1] * (1 - press))
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :kept], layer.values[:, :, :kept]
        question = ids["questions_ids"][0]
        for _ in range(new):
            question = self.model(input_ids=question, past_key_values=cache).logits[0, -1:].argmax(-1)[None]
        for layer in cache.layers:
            layer.keys = layer.keys[:, :, :kept]
        return ["said"]


@pytest.mark.parametrize(("ratio", "unchanged"), [(0.5, None), (0.0, "no key was dropped")])
def test_a_press_that_drops_nothing_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, unchanged: str | None
) -> None:
    package = types.ModuleType("kvpress")
    package.SnapKVPress = lambda compression_ratio: compression_ratio  # type: ignore[attr-defined]
    package.KVPressTextGenerationPipeline = HalfPipeline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kvpress", package)
    monkeypatch.setattr(_models, "facts", lambda model, *packages: {"versions": {}})
    asked = {"model": str(folder), "dtype": "float32", "device": "cpu"}
    with pytest.raises(Refused, match="NothingPress"):
        kvpress.load({**asked, "options": {"press": "Nothing", "ratio": ratio, "aware": False}})
    pressed = kvpress.load({**asked, "options": {"press": "SnapKV", "ratio": ratio, "aware": False}})
    ids = {"context_ids": list(range(5, 105)), "question_ids": [7, 8], "after_ids": [9]}
    found = pressed.answer({**ids, "max_new_tokens": 4})
    assert found["unchanged"] == unchanged and found["measured"]["kept_tokens"] == 100 * (1 - ratio)
    assert found["measured"]["prompt_tokens"] == 103 and found["text"] == "said"
    aware = kvpress.load({**asked, "options": {"press": "SnapKV", "ratio": ratio, "aware": True}})
    assert aware.answer({**ids, "max_new_tokens": 4})["measured"]["kept_tokens"] == 102 * (1 - ratio)


class Reading:
    """What the wrapper calls of infini-retri: every chunk is read, and the answer is said after a part of the text."""

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def generate(self, context: str, question: str, prompt: str, max_new_tokens: int) -> str:
        import torch

        for shown in (context[:200], context[200:400], prompt.format(context=SHOWN[0] or context, question=question)):
            ids = self.tokenizer(shown, return_tensors="pt")["input_ids"]
            self.model(ids)
        for token in range(max_new_tokens - 1):
            self.model(torch.tensor([[token]]))
        return " said "


SHOWN = [""]


@pytest.mark.parametrize(("shown", "unchanged"), [("The code.", None), ("", "no sentence was left out")])
def test_what_infini_retri_read_in_the_end_is_known(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shown: str, unchanged: str | None
) -> None:
    package = types.ModuleType("infini_retri")
    package.InfiniRetri = Reading  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "infini_retri", package)
    monkeypatch.setattr(_models, "facts", lambda model, *packages: {"versions": {}})
    monkeypatch.setitem(globals(), "SHOWN", [shown])
    options = {"topk": 300, "window": 1024, "phrase": 8}
    own = infini_retri.load({"model": str(folder), "dtype": "float32", "device": "cpu", "options": options})
    found = own.answer({"text": TEXT, "question": "q", "template": "{context} {question}", "max_new_tokens": 5})
    assert found["unchanged"] == unchanged and found["text"] == "said"
    assert found["measured"]["new_tokens"] == 5 and found["measured"]["tokens_read"] > 50
    assert (shown or TEXT.strip()) in found["shown"]
