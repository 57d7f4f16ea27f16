"""What callers hand to bounded caches, or do while one is attached, that cannot be: said at once, by type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from architectures import small
from wrapping import Wrapper

import longctx
from longctx.errors import ArtifactError, BadOption, CacheError, LongctxError, ModelError, UsageError
from longctx.store import contexts as stored

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.randint(4, 470, (1, 60), generator=torch.Generator().manual_seed(0))
MORE = torch.cat([IDS, torch.randint(4, 470, (1, 7), generator=torch.Generator().manual_seed(1))], 1)
MEMO = longctx.Document.from_text("The meeting is on Monday at nine.")
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 1, "do_sample": False}


@pytest.mark.parametrize("policy", ["full", "squeezed:budget=24,recent=8"])
def test_a_wrapped_model_generates_behind_a_context(policy: str) -> None:
    model = tiny.model("llama", attention="sdpa")
    outer: Any = Wrapper(model)
    whole = model.generate(MORE, **GREEDY)
    with longctx.kv.compress(model, IDS, policy).attached(model) as cache:
        own = model.generate(MORE, past_key_values=cache, **GREEDY)
    context = longctx.kv.compress(outer, IDS, policy)
    with context.attached(outer) as cache, torch.no_grad():
        found = outer.generate(MORE, past_key_values=cache, **GREEDY)
        report = cache.report()
        cache.rewind()
        said = outer(MORE[:, 60:], past_key_values=cache, use_cache=True).logits[0, -1]
    assert torch.equal(found, own) and (policy != "full" or torch.equal(found, whole))
    assert report.read_keys <= (60 if policy == "full" else 24) and int(said.argmax()) == found[0, 67]
    assert not model._forward_pre_hooks and not outer._forward_pre_hooks


def test_a_stream_inside_an_attached_context_is_refused_and_not_waited_for() -> None:
    reader = longctx.Reader(tiny.model("llama"), tiny.tokenizer("system"), encoder=None, calibration=None)
    how: dict[str, Any] = {"max_new_tokens": 4}
    with longctx.kv.compress(reader.model, IDS).attached(reader.model):
        with pytest.raises(CacheError, match="stream once the context is no longer attached"):
            reader.stream(MEMO, "When?", **how)
        asked = reader.ask(MEMO, "When?", **how)
    *_, last = reader.stream(MEMO, "When?", **how)
    assert last.answer is not None and last.answer.text == asked.text


@pytest.mark.parametrize("what", ["embedded", 7, "a reader"])
def test_what_is_no_model_is_named(what: Any, tmp_path: Path) -> None:
    model = tiny.model("llama")
    context = longctx.kv.compress(model, IDS)
    context.save(tmp_path / "kept")
    if what == "a reader":
        what = longctx.Reader(model, tiny.tokenizer("system"), encoder=None)
    uses: tuple[Callable[[], Any], ...] = (
        lambda: longctx.kv.compress(what, IDS),
        lambda: longctx.kv.read(what, IDS),
        lambda: longctx.kv.load(tmp_path / "kept", what),
        lambda: context.attached(what).__enter__(),
    )
    for use in uses:
        with pytest.raises(ModelError, match="is not a Hugging Face model"):
            use()


def test_weights_that_are_not_in_memory_have_no_fingerprint() -> None:
    model = tiny.model("llama")
    context = longctx.kv.compress(model, IDS)
    model.lm_head.to("meta")
    reader = longctx.Reader(model, tiny.tokenizer("system"), encoder=None)
    for use in (lambda: context.attached(model).__enter__(), lambda: reader.ask(MEMO, "When?")):
        with pytest.raises(ModelError, match="not in memory, lm_head.weight the first"):
            use()


@pytest.mark.parametrize("every", ["8", -1, 1.5])
def test_an_audit_is_every_so_many_passes(every: Any) -> None:
    model = tiny.model("llama")
    with pytest.raises(LongctxError, match="audit_every"):
        longctx.kv.compress(model, IDS).attached(model, audit_every=every).__enter__()


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("snapkv:budget=20", r"\(window\)"),
        ("quest:budget=30", "up to the end of a page"),
        ("longheads:budget=512", "three times window"),
        ("squeezed:budget=100", "sinks and recent"),
    ],
)
def test_a_budget_that_is_too_small_is_refused_in_words_of_the_policys_own_options(policy: str, words: str) -> None:
    with pytest.raises(BadOption, match=words):
        longctx.kv.compress(tiny.model("llama"), torch.arange(4, 404).repeat(3)[None] % 470 + 4, policy)


def test_what_no_release_could_read_back_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    context = longctx.kv.compress(tiny.model("llama"), IDS)
    monkeypatch.setattr(stored, "_MOST_MANIFEST", 500)
    with pytest.raises(UsageError, match="has no form on the disk"):
        context.save(tmp_path / "kept")
    assert not list(tmp_path.glob("kept/*safetensors"))


def test_a_context_of_another_release_says_so_where_its_model_is_not_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stored, "_here", lambda: "transformers 4")
    longctx.kv.compress(tiny.model("llama"), IDS).save(tmp_path / "kept")
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match=r"another model .* It was made with transformers 4, and here is torch"):
        longctx.kv.load(tmp_path / "kept", tiny.model("llama", num_hidden_layers=2))


def test_a_cache_goes_with_the_model_it_is_attached_to_though_another_has_one_too() -> None:
    one, other = tiny.model("llama"), tiny.model("llama", seed=5)
    with (
        longctx.kv.compress(one, IDS, "full").attached(one) as cache,
        longctx.kv.compress(other, IDS, "full").attached(other) as own,
    ):
        for model, wrong in ((other, cache), (other, cache.fork()), (one, own)):
            with pytest.raises(CacheError, match="attached to another LlamaForCausalLM"):
                model.generate(MORE, past_key_values=wrong, **GREEDY)
            with pytest.raises(CacheError, match="attached to another LlamaForCausalLM"):
                longctx.generate(model, tiny.tokenizer("system"), MORE, past_key_values=wrong, max_new_tokens=2)
        assert torch.equal(other.generate(MORE, past_key_values=own, **GREEDY), other.generate(MORE, **GREEDY))


class Interruption(Exception):
    pass


def stop(*given: Any) -> None:
    raise Interruption


@pytest.mark.parametrize("kind", ["states", "one layer"])
def test_a_cache_that_a_failed_pass_left_is_asked_again_only_from_the_context_on(kind: str) -> None:
    """What layers with states have taken in is in no length; of one layer that keeps keys there is one length."""
    model: Any = tiny.hybrid() if kind == "states" else tiny.model("llama", num_hidden_layers=1)
    context = longctx.kv.compress(model, IDS, "full", allow_partial=True)
    with context.attached(model) as cache, torch.no_grad():
        expected = model(MORE[:, 60:], past_key_values=cache.fork()).logits
        last = model.model.layers[-1]  # the one that keeps keys: none of them are there yet, or all
        hook = (last.input_layernorm if kind == "states" else last.mlp).register_forward_pre_hook(stop)
        with pytest.raises(Interruption):
            model(MORE[:, 60:], past_key_values=cache)
        hook.remove()
        for broken in (cache, cache.fork()):
            with pytest.raises(CacheError, match="failed halfway"):
                model(MORE[:, 60:], past_key_values=broken)
        cache.rewind()
        torch.testing.assert_close(model(MORE[:, 60:], past_key_values=cache).logits, expected)


def test_a_crop_of_nothing_is_nothing_to_a_cache_with_states() -> None:
    model = tiny.hybrid()
    with longctx.kv.compress(model, IDS, "full", allow_partial=True).attached(model) as cache, torch.no_grad():
        model(MORE[:, 60:], past_key_values=cache)
        cache.crop(0)
        assert cache.lengths == {67}
        with pytest.raises(CacheError, match="states of their own"):
            cache.crop(-1)


def test_padding_beside_a_question_is_seen_by_chunked_layers_that_are_left_alone() -> None:
    model = small("Llama4Text")
    context = longctx.kv.compress(model, IDS, "full", allow_partial=True)
    mask = torch.ones(1, 67, dtype=torch.long)
    mask[0, 60:63] = 0
    with context.attached(model) as cache, torch.no_grad():
        padded = model(MORE[:, 60:], attention_mask=mask, past_key_values=cache).logits[:, 3:]
        whole = model(MORE, attention_mask=mask).logits[:, 63:]
    torch.testing.assert_close(padded, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("kind", ["rows", "stock"])
def test_a_context_is_read_in_pieces_of_so_many_tokens(kind: str) -> None:
    model = tiny.hybrid() if kind == "stock" else tiny.model("llama")
    seen: list[int] = []

    def heard(stage: str, done: int, total: int) -> None:
        if stage == "context":
            seen.append(done)

    rows: list[int] = []
    hook = model.model.layers[0].input_layernorm.register_forward_hook(lambda m, args, out: rows.append(out.shape[-2]))
    longctx.kv.compress(model, IDS, "full", allow_partial=True, piece_tokens=16, progress=heard)
    hook.remove()
    assert seen == [16, 32, 48, 60] and rows[-4:] == [16, 16, 16, 12]
