"""Compressed contexts inside model.generate, against the stock model, and what is left behind."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from contexts import CONTEXT, GREEDY, IDS, SQUEEZED, compressed
from transformers import AutoModelForCausalLM, GptOssConfig

import longctx
import longctx.kv
from longctx.errors import BadOption, CacheError, ModelError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_context_beyond_a_switch_of_frequencies_is_read_as_the_text_that_it_is() -> None:
    """longrope has other frequencies for long texts, and a short piece of one is no short text."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "factor": 4.0}
    rope |= {"long_factor": [float(2 + i) for i in range(8)], "original_max_position_embeddings": 40}
    model = tiny.model("phi3", rope_parameters=rope, original_max_position_embeddings=40)
    expected = model.generate(IDS, **GREEDY)
    context = longctx.kv.compress(model, IDS[:, :CONTEXT], policy="full", piece_tokens=16)
    with context.attached(model) as cache:
        assert torch.equal(model.generate(IDS, past_key_values=cache, **GREEDY), expected)


@pytest.mark.parametrize("window", [2, 5])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_windows_of_a_few_tokens_are_windows(family: str, window: int) -> None:
    model = tiny.model(family, sliding_window=window)
    with compressed(model).attached(model) as cache:
        assert torch.equal(model.generate(IDS, past_key_values=cache, **GREEDY), model.generate(IDS, **GREEDY))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_full_is_stock_attention(family: str) -> None:
    model = tiny.model(family)
    expected = model.generate(IDS, **GREEDY)
    with torch.inference_mode():
        logits = model(IDS).logits[:, CONTEXT:]
    context = longctx.kv.compress(model, IDS[:, :CONTEXT], policy="full", piece_tokens=32)
    with context.attached(model) as cache:
        with torch.inference_mode():
            seen = model(IDS[:, CONTEXT:], past_key_values=cache).logits
        torch.testing.assert_close(seen, logits, rtol=1e-5, atol=1e-5 * float(logits.abs().max()))
        cache.rewind()
        assert torch.equal(model.generate(IDS, past_key_values=cache, **GREEDY), expected)
    assert context.tokens == CONTEXT and not context.warnings or family == "mistral"
    slides = {"mistral": (0, 1, 2, 3), "gemma2": (0, 2), "gemma3": (0, 2)}
    assert context.left_alone == slides.get(family, ())


def test_attention_with_sinks_of_its_own_is_stock_attention() -> None:
    """GPT-OSS adds a number a head to the denominator, in sliding and in full layers."""
    config = GptOssConfig(
        vocab_size=480, hidden_size=64, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=2, num_experts_per_tok=1, sliding_window=8,
        eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, weight in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(weight, 2.0)
        else:
            torch.nn.init.normal_(weight, 0.0 if weight.ndim > 1 else 1.0, 0.2)
    with torch.inference_mode():
        logits = model(IDS).logits[:, CONTEXT:]
        with compressed(model).attached(model) as cache:
            seen = model(IDS[:, CONTEXT:], past_key_values=cache).logits
    torch.testing.assert_close(seen, logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 2.0, "max_new_tokens": 12},
        {"num_beams": 3, "do_sample": False, "max_new_tokens": 12},
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": False, "max_new_tokens": 12},
        {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 6},
        {"do_sample": False, "max_new_tokens": 6, "prefill_chunk_size": 7},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_way_of_generating_gives_the_stock_tokens(family: str, options: dict[str, Any]) -> None:
    model = tiny.model(family)
    torch.manual_seed(3)
    expected = model.generate(IDS, **options)
    with compressed(model).attached(model) as cache:
        torch.manual_seed(3)
        assert torch.equal(model.generate(IDS, past_key_values=cache, **options), expected)


@pytest.mark.parametrize(
    "policy", ["full", SQUEEZED, "lm_infinite:budget=24,sinks=4,window=16", "longheads:budget=40,window=8"]
)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt_neox"])
def test_a_batch_of_questions_is_each_question_alone(family: str, policy: str) -> None:
    """Padded between context and question; the answers are those of one question after the other."""
    model = tiny.model(family)
    questions = [IDS[0, CONTEXT:].tolist(), IDS[0, 75:82].tolist(), IDS[0, 81:82].tolist()]
    width = max(map(len, questions))
    context = IDS[0, :CONTEXT].tolist()
    rows = torch.tensor([[*context, *[1] * (width - len(q)), *q] for q in questions])
    mask = torch.tensor([[1] * CONTEXT + [0] * (width - len(q)) + [1] * len(q) for q in questions])
    held = compressed(model, policy)
    with held.attached(model) as cache:
        together = model.generate(rows, attention_mask=mask, past_key_values=cache, **GREEDY)[:, rows.shape[1] :]
    for question, answer in zip(questions, together, strict=True):
        with held.attached(model) as cache:
            alone = torch.tensor([[*context, *question]])
            said = model.generate(alone, past_key_values=cache, **GREEDY)[0, alone.shape[1] :]
        assert torch.equal(answer, said)


@pytest.mark.parametrize("policy", ["full", SQUEEZED])
def test_new_ids_go_with_a_mask_of_the_full_length(policy: str) -> None:
    model = tiny.model("llama")
    held = compressed(model, policy)
    new = IDS[:, CONTEXT:]
    with held.attached(model) as cache:
        expected = model.generate(IDS, past_key_values=cache, **GREEDY)[:, 90:]
    with held.attached(model) as cache:
        said = model.generate(new, attention_mask=torch.ones_like(IDS), past_key_values=cache, **GREEDY)
    assert torch.equal(said[:, 20:], expected)


@pytest.mark.parametrize("count", [1, 20, 50])
def test_new_ids_without_that_mask_are_refused_and_the_error_says_so(count: int) -> None:
    """Also where the question is so long that transformers would feed some of it."""
    model = tiny.model("llama")
    with compressed(model).attached(model) as cache, pytest.raises(CacheError, match="attention_mask of ones"):
        model.generate(IDS[:, :count], past_key_values=cache, **GREEDY)
    with compressed(model).attached(model) as cache, pytest.raises(CacheError, match="attention_mask of ones"):
        short = torch.ones(1, 90 - 1, dtype=torch.long)
        short[:, -1] = 0
        model.generate(IDS[:, CONTEXT:], attention_mask=short, past_key_values=cache, **GREEDY)


def test_a_pass_that_feeds_everything_again_is_refused() -> None:
    model = tiny.model("llama")
    with compressed(model).attached(model) as cache, pytest.raises(CacheError, match="use_cache=False"):
        model.generate(IDS, past_key_values=cache, use_cache=False, **GREEDY)


def test_padding_in_front_of_the_context_is_refused() -> None:
    model = tiny.model("llama")
    mask = torch.ones_like(IDS)
    mask[:, :3] = 0
    with compressed(model).attached(model) as cache, pytest.raises(CacheError, match="between context and question"):
        model.generate(IDS, attention_mask=mask, past_key_values=cache, **GREEDY)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_mask_that_is_given_by_its_place_is_seen(family: str) -> None:
    model = tiny.model(family)
    hidden, padded = torch.ones_like(IDS), torch.ones_like(IDS)
    hidden[:, 3], padded[:, CONTEXT : CONTEXT + 4] = 0, 0
    with torch.inference_mode(), compressed(model).attached(model) as cache:
        with pytest.raises(CacheError, match="hides tokens of the context"):
            model(IDS[:, CONTEXT:], hidden, past_key_values=cache)
        named = model(IDS[:, CONTEXT:], attention_mask=padded, past_key_values=cache.fork()).logits
        placed = model(IDS[:, CONTEXT:], padded, past_key_values=cache.fork()).logits
        assert torch.equal(named, placed)
        assert not torch.equal(named, model(IDS[:, CONTEXT:], past_key_values=cache).logits)


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": tiny.model("llama", seed=5)}])
def test_assisted_generation_is_refused_and_the_error_names_what_to_use(options: dict[str, Any]) -> None:
    model = tiny.model("llama")
    with compressed(model).attached(model) as cache, pytest.raises(CacheError, match="longctx.speculative"):
        model.generate(IDS, past_key_values=cache, **GREEDY, **options)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("policy", ["full", SQUEEZED, "snapkv:budget=30,window=8"])
def test_two_questions_from_one_fork_are_two_fresh_runs(family: str, policy: str) -> None:
    model = tiny.model(family)
    other = torch.cat((IDS[:, :CONTEXT], IDS[:, 3:17]), 1)
    fresh = []
    for ids in (IDS, other):
        with compressed(model, policy).attached(model) as cache:
            fresh.append(model.generate(ids, past_key_values=cache, **GREEDY))
    held = compressed(model, policy)
    with held.attached(model) as cache:
        again = held.fork()
        first = model.generate(IDS, past_key_values=cache, **GREEDY)
        assert torch.equal(model.generate(other, past_key_values=again, **GREEDY), fresh[1])
        assert torch.equal(first, fresh[0])
        cache.rewind()
        assert torch.equal(model.generate(other, past_key_values=cache, **GREEDY), fresh[1])


def test_a_fork_goes_on_by_itself_and_tokens_can_be_taken_back() -> None:
    model = tiny.model("llama")
    with torch.inference_mode(), compressed(model).attached(model) as cache:
        model(IDS[:, CONTEXT:80], past_key_values=cache)
        branch = cache.fork()
        straight = model(IDS[:, 80:84], past_key_values=cache).logits
        model(IDS[:, :6], past_key_values=branch)
        branch.crop(-6)
        torch.testing.assert_close(
            model(IDS[:, 80:84], past_key_values=branch).logits, straight, rtol=0, atol=1e-5 * float(straight.max())
        )
        with pytest.raises(CacheError, match="only those can be taken back"):
            cache.crop(-15)
        with pytest.raises(CacheError, match="negative"):
            cache.crop(1)


def test_a_layer_that_sees_a_window_takes_back_only_what_it_still_has() -> None:
    model = tiny.model("gemma3")
    with torch.inference_mode(), compressed(model).attached(model) as cache:
        expected = model(IDS[:, CONTEXT:], past_key_values=cache).logits
        cache.rewind()
        model(IDS[:, :1], past_key_values=cache)
        cache.crop(-1)
        assert torch.equal(model(IDS[:, CONTEXT:], past_key_values=cache).logits, expected)
        with pytest.raises(CacheError, match="has dropped what would be seen again"):
            cache.crop(-3)


def test_a_sliding_layer_holds_a_few_windows_however_long_the_answer() -> None:
    model = tiny.model("gemma3")
    with compressed(model).attached(model) as cache:
        expected = model.generate(IDS, do_sample=False, max_new_tokens=60, min_new_tokens=60)
        assert torch.equal(
            model.generate(IDS, past_key_values=cache, do_sample=False, max_new_tokens=60, min_new_tokens=60), expected
        )
        layer = cache.layers[0]
        assert layer.used < 2 * tiny.SLIDING and layer.get_seq_length() == 149


def test_after_the_context_is_closed_nothing_is_left_behind() -> None:
    model = tiny.model("llama")
    held = compressed(model)
    with pytest.raises(ZeroDivisionError), held.attached(model) as cache:
        raise ZeroDivisionError
    assert model.config._attn_implementation == "eager"
    assert not model._forward_pre_hooks and not model._forward_hooks
    for use in (cache.fork, cache.rewind, lambda: model.generate(IDS, past_key_values=cache, **GREEDY)):
        with pytest.raises(CacheError, match="after its context was closed"):
            use()
    with pytest.raises(CacheError, match="inside `with"):
        held.fork()


def test_forks_are_closed_with_the_context_they_came_from() -> None:
    model = tiny.model("llama")
    held = compressed(model)
    with held.attached(model) as cache:
        forks = [cache.fork(), held.fork(), cache.fork().fork()]
    for fork in forks:
        for use in (fork.fork, fork.rewind, lambda fork=fork: model.generate(IDS, past_key_values=fork, **GREEDY)):
            with pytest.raises(CacheError, match="after its context was closed"):
                use()


def test_a_pass_that_fails_halfway_is_noticed_and_can_be_forgotten() -> None:
    model = tiny.model("llama")
    held = compressed(model, SQUEEZED)
    with torch.inference_mode(), held.attached(model) as cache:
        expected = model(IDS[:, CONTEXT:], past_key_values=cache).logits
        cache.rewind()
        hook = model.model.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(IDS[:, CONTEXT:], past_key_values=cache)
        hook.remove()
        with pytest.raises(CacheError, match=r"rewind\(\)"):
            model(IDS[:, CONTEXT:], past_key_values=cache)
        cache.rewind()
        assert torch.equal(model(IDS[:, CONTEXT:], past_key_values=cache).logits, expected)


def test_another_model_and_another_pass_are_refused() -> None:
    model = tiny.model("llama")
    held = compressed(model)
    with pytest.raises(CacheError, match="another model"), held.attached(tiny.model("llama", seed=1)):
        pass
    with held.attached(model) as cache, pytest.raises(CacheError, match="did not come through the model"):
        model.model(IDS[:, CONTEXT:], past_key_values=cache)


def test_numbers_that_are_not_finite_name_layer_and_position() -> None:
    model = tiny.model("llama")
    held = compressed(model)
    with torch.inference_mode():
        held._context.layers[2].values[:, 5] = torch.nan
    with held.attached(model) as cache, pytest.raises(ModelError, match="layer 2 .* position 89"):
        model.generate(IDS, past_key_values=cache, **GREEDY)


def test_what_a_tokenizer_returns_is_a_context_where_nothing_of_it_is_padding() -> None:
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    given = tokenizer("the river of the north", return_tensors="pt")
    for compressed_from in (longctx.kv.compress, longctx.kv.read):
        assert compressed_from(model, given).token_ids == tuple(given["input_ids"][0].tolist())
        padded = tokenizer("the river", padding="max_length", max_length=20, return_tensors="pt")
        with pytest.raises(BadOption, match="padded"):
            compressed_from(model, padded)


@pytest.mark.parametrize("policy", ["snapkv:budget=40,window=16", "lm_infinite:budget=40"])
def test_true_is_a_bar(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.model("llama")
    longctx.kv.compress(model, IDS, policy)
    assert capsys.readouterr().err == ""
    longctx.kv.compress(model, IDS, policy, progress=True)
    assert "context: 90 of 90 (100%)\n" in capsys.readouterr().err
    longctx.kv.read(model, IDS, progress=True).compress("snapkv:budget=40,window=16", progress=True)
    assert {line.partition(":")[0] for line in capsys.readouterr().err.splitlines()} == {"context", "index"}


@pytest.mark.parametrize("policy", ["oracle:budget=20", SQUEEZED, "quest:budget=24,page=4,recent=4"])
def test_the_share_not_read_is_measured_by_audit(policy: str) -> None:
    """Against the sum of the stock model's own attention over keys that an oracle of one layer did not read."""
    model = tiny.model("llama")
    with compressed(model, policy).attached(model, audit_every=3) as cache:
        model.generate(IDS, past_key_values=cache, **GREEDY)
        report = cache.report()
    assert report.passes == 12 and report.audited == 4 and report.context_tokens == CONTEXT
    assert report.true_unread_share is not None and 0 < report.true_unread_share < 1
    assert report.read_share == pytest.approx(report.read_keys / CONTEXT)
    if policy.startswith("quest"):
        assert report.unread_share is None
    else:
        assert report.unread_share is not None and 0 < report.unread_share < 1


def test_an_audited_share_is_that_of_plain_attention() -> None:
    model = tiny.model("llama", num_hidden_layers=1, num_key_value_heads=1)
    with torch.inference_mode():
        weights = model(IDS[:, : CONTEXT + 1], output_attentions=True).attentions[0][0, :, -1]
        with compressed(model, "lm_infinite:budget=20,sinks=2,ceiling=1000").attached(model) as cache:
            model(IDS[:, CONTEXT : CONTEXT + 1], past_key_values=cache)
            assert cache.report().true_unread_share is None  # what is gone cannot be audited
        with compressed(model, "random:budget=20,sinks=2,recent=3").attached(model, audit_every=1) as cache:
            model(IDS[:, CONTEXT : CONTEXT + 1], past_key_values=cache)
            slots = cache.context.layers[0].index.tensors["slots"][0]
            report = cache.report()
    left = torch.ones(CONTEXT + 1, dtype=torch.bool)
    left[slots], left[CONTEXT] = False, False
    assert report.true_unread_share == pytest.approx(float(weights[:, left].sum(-1).mean()), abs=1e-5)
