"""A reader whose model is changed between questions: what was made with the model before is not used with this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import longctx
from longctx.errors import ArtifactError, CacheError

pytestmark = pytest.mark.usefixtures("one_thread")
DOC = longctx.Document.from_text(" ".join(f"The room code of street {n} is {n * 37 % 101}." for n in range(60)))
QUESTION = "Which code has street 7?"


def reader_of(model: object, calibration: str | None = None) -> longctx.Reader:
    return longctx.Reader(model, tiny.tokenizer("system"), encoder=None, calibration=calibration)


def train(model: Any) -> None:
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight.mul_(-1.5)
            layer.mlp.down_proj.weight.mul_(-2.0)


@pytest.mark.parametrize("selector", ["xl3m", "infiniretri"])
def test_a_model_that_learned_between_two_questions_reads_as_one_that_always_was_so(selector: str) -> None:
    model = tiny.model("llama")
    reader = reader_of(model)
    before = reader.select(DOC, QUESTION, budget_tokens=120, selector=selector)
    name = reader.fingerprint
    train(model)
    after = reader.select(DOC, QUESTION, budget_tokens=120, selector=selector)
    fresh = reader_of(model).select(DOC, QUESTION, budget_tokens=120, selector=selector)
    assert reader.fingerprint != name
    assert after.spans == fresh.spans and [u.score for u in after.profile] == [u.score for u in fresh.profile]
    assert [u.score for u in after.profile] != [u.score for u in before.profile], "nothing of the change is seen"


def test_a_compiled_document_is_of_the_adapter_that_was_at_work() -> None:
    model = tiny.model("llama")
    adapted = model.model.layers[0].self_attn
    adapted._active_adapter = ["one"]  # where peft's layers say what is at work
    reader = reader_of(model)
    book = reader.compile(DOC)
    said = reader.ask(book, QUESTION, budget_tokens=120, max_new_tokens=4)
    adapted._active_adapter = ["other"]
    with pytest.raises(CacheError, match="adapters of this one changed"):
        reader.ask(book, QUESTION, budget_tokens=120, max_new_tokens=4)
    adapted._active_adapter = ["one"]
    assert reader.ask(book, QUESTION, budget_tokens=120, max_new_tokens=4).text == said.text


def test_keys_of_the_model_before_are_not_stored_for_this_one(tmp_path: Path) -> None:
    model = tiny.model("llama")
    reader = reader_of(model)
    book = reader.compile(DOC)
    stored = reader.compile(DOC, path=tmp_path / "before", segment_kv="disk")
    train(model)
    with pytest.raises(CacheError, match="changed"):
        book.save(tmp_path / "one")
    assert not (tmp_path / "one").exists()
    with pytest.raises(CacheError, match="changed"):
        reader.select(stored, QUESTION, budget_tokens=120, selector="xl3m")
    with pytest.raises(ArtifactError, match="model"):
        reader.load(tmp_path / "before", verify="off")
    # the folder of the model before is given this one's keys, all of them read again
    again = reader.compile(DOC, path=tmp_path / "before", segment_kv="disk")
    fresh = reader_of(model)
    found = [
        each.select(DOC if book is None else book, QUESTION, budget_tokens=120, selector="xl3m").profile
        for each, book in ((reader, again), (fresh, fresh.load(tmp_path / "before")), (fresh, None))
    ]
    for own in found[:2]:
        assert [u.score for u in own] == pytest.approx([u.score for u in found[2]], abs=1e-4)


def test_what_was_read_is_not_compressed_for_a_model_that_changed() -> None:
    model = tiny.model("llama")
    ids = torch.randint(4, 470, (60,), generator=torch.Generator().manual_seed(0))
    reading = longctx.kv.read(model, ids)
    kept = reading.compress("full")
    train(model)
    for use in (lambda: reading.compress("quest"), lambda: reading.repeated(2).compress("full")):
        with pytest.raises(CacheError, match="changed since the context was read"):
            use()
    with pytest.raises(CacheError, match="another model"), kept.attached(model):
        pass


def test_a_change_that_the_fingerprint_misses_is_seen_by_the_next_question() -> None:
    """The prompt's own beginning is read once and kept: one row of the table of tokens tells nothing to a sample."""
    model = tiny.model("llama")
    reader = reader_of(model)
    how: dict[str, Any] = {"budget_tokens": 120, "selector": "xl3m"}
    reader.select(DOC, QUESTION, **how)
    name, token = reader.fingerprint, reader.prompt("", "")[1]
    row = model.get_input_embeddings().weight
    with torch.no_grad():
        row[token, 1] += 9.0
    assert reader.fingerprint == name, "the sample of the weights has this number: choose another"
    found = [each.select(DOC, QUESTION, **how).profile for each in (reader, reader_of(model))]
    assert [u.score for u in found[0]] == [u.score for u in found[1]]


def test_heads_are_found_again_for_a_model_that_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from longctx import calibration

    monkeypatch.setenv("LONGCTX_CACHE", str(tmp_path))
    for name in ("_SEGMENTS", "_ASKED", "_GLANCED"):
        monkeypatch.setattr(calibration, name, 3)
    model = tiny.model("llama", num_hidden_layers=2)
    reader = reader_of(model, "auto")
    before = reader.compile(DOC).calibration
    train(model)
    after = reader.compile(DOC).calibration
    assert before is not None and after is not None
    assert (before.fingerprint != after.fingerprint) and after == reader_of(model, "auto").compile(DOC).calibration
    assert len(list((tmp_path / "calibration").iterdir())) == 2


def test_an_adapter_that_grows_stronger_is_another_one() -> None:
    model = tiny.model("llama")
    reader, adapted = reader_of(model), model.model.layers[0].self_attn
    own = reader.fingerprint
    adapted._active_adapter = ["one"]
    names = [own, reader.fingerprint]
    for strength in (1.0, 2.0):
        adapted.scaling = {"one": strength}
        names.append(reader.fingerprint)
    assert len(set(names)) == 4


def test_the_last_context_is_that_of_the_model_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that no sample sees, and hooks, change keys too."""
    from longctx import last_context

    model, ask = tiny.model("llama"), last_context.LastContext()
    made: list[object] = []

    def compress(*given: Any, **how: Any) -> object:
        made.append(object())
        return made[-1]

    monkeypatch.setattr(last_context, "compress", compress)
    name, hooks = reader_of(model).fingerprint, []

    def write() -> None:
        with torch.no_grad():
            model.get_input_embeddings().weight[7, 1] += 9.0

    def steer() -> None:
        hooks.append(model.model.layers[0].register_forward_hook(lambda module, args, out: out))

    for count, change in enumerate((lambda: None, write, steer, lambda: hooks[0].remove()), 1):
        change()
        assert ask(model, range(4), "full", False, None) is ask(model, range(4), "full", False, None) is made[-1]
        assert len(made) == count
    assert reader_of(model).fingerprint == name, "the sample of the weights has this number: choose another"
