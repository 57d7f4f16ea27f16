"""``generate`` and ``speculative`` against Hugging Face's own generate: the same tokens, in fewer passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from generators import OPTIONS, PROMPT, STEADILY, TOKENIZER, plain
from transformers import DynamicCache, StopStringCriteria

import longctx
from longctx.drafts import Budget, Draft, DraftSource, Verified
from longctx.errors import BadOption, CacheError, DraftError, UnknownMethod
from longctx.promises import guarantee

pytestmark = pytest.mark.usefixtures("one_thread")


class Oracle:
    """Knows the answer, and hides it among wrong siblings; ``wrong`` makes every token another one."""

    needs = 0

    def __init__(self, answer: list[int], wrong: bool = False) -> None:
        self.answer, self.wrong = answer, wrong

    def begin(self, source: DraftSource) -> Oracle:
        self.said = 0
        return self

    def propose(self, budget: Budget) -> Draft:
        truth = [token + self.wrong for token in self.answer[self.said : self.said + 5]]
        siblings = [5, 6, 7]
        tokens = [*siblings, *truth]
        parents = [-1, -1, -1, *([-1, *range(3, len(tokens) - 1)] if truth else [])]
        return Draft(np.asarray(tokens), np.asarray(parents), np.linspace(0.9, 0.5, len(tokens)))

    def observe(self, verified: Verified) -> None:
        self.said += len(verified.tokens)


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_tokens_are_hugging_faces_and_right_drafts_save_passes(family: str, wrong: bool) -> None:
    model = tiny.model(family)
    expected = plain(model)
    oracle = Oracle(expected[0, PROMPT.shape[1] :].tolist(), wrong)
    out = longctx.generate(model, TOKENIZER, PROMPT, drafters=[oracle], **STEADILY)
    assert torch.equal(out.sequences, expected)
    if wrong:
        assert out.stats.accepted <= 1 and out.stats.rounds >= 23
    else:
        assert out.stats.rounds < 10 and out.stats.accepted == 24 - out.stats.rounds
    assert out.stats.accepted == out.stats.accepted_by_source["oracle"]
    assert out.text == TOKENIZER.decode(out.sequences[0, PROMPT.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": ...},  # filled in once the plain answer is known, as they would have no effect else
        {"bad_words_ids": ...},
        {"max_new_tokens": 1},
        {"max_new_tokens": 3},
    ],
)
def test_options_of_generate_hold_for_drafted_tokens(options: dict[str, Any]) -> None:
    model = tiny.model("qwen2")
    new = plain(model)[0, PROMPT.shape[1] :].tolist()
    if "bad_words_ids" in options:
        options = {"bad_words_ids": [[new[2]], new[5:7]]}
    if "min_new_tokens" in options:
        options = {"min_new_tokens": 20, "eos_token_id": new[4]}
    expected = plain(model, **options)
    assert not torch.equal(expected, plain(model)), "the option changes the answer"
    oracle = Oracle(expected[0, PROMPT.shape[1] :].tolist())
    out = longctx.generate(model, TOKENIZER, PROMPT, drafters=[oracle, "document", "ngram"], **STEADILY | options)
    assert torch.equal(out.sequences, expected)


def test_an_end_inside_a_draft_ends_there() -> None:
    model = tiny.model()
    full = plain(model)[0, PROMPT.shape[1] :].tolist()
    eos = full[7]
    expected = plain(model, eos_token_id=[eos, 479])
    out = longctx.generate(model, TOKENIZER, PROMPT, drafters=[Oracle(full)], **OPTIONS | {"eos_token_id": [eos, 479]})
    assert torch.equal(out.sequences, expected) and out.sequences.shape[1] == PROMPT.shape[1] + full.index(eos) + 1


@pytest.mark.parametrize("at", [1, 6, 13])
def test_a_stop_string_ends_with_its_token_also_across_rounds(at: int) -> None:
    model = tiny.model()
    full = plain(model)[0, PROMPT.shape[1] :].tolist()
    stop = TOKENIZER.decode(full[at : at + 2])
    with torch.inference_mode():
        expected = model.generate(PROMPT, do_sample=False, stop_strings=[stop], tokenizer=TOKENIZER, **OPTIONS)
    for drafters in ([Oracle(full)], []):
        out = longctx.generate(model, TOKENIZER, PROMPT, drafters=drafters, stop=[stop], **OPTIONS)  # type: ignore[arg-type]
        assert torch.equal(out.sequences, expected)
        assert stop not in out.text and TOKENIZER.decode(full).startswith(out.text)
        criteria = StopStringCriteria(TOKENIZER, [stop])
        own = longctx.speculative(drafters=drafters)  # type: ignore[arg-type]
        made = model.generate(PROMPT, do_sample=False, stopping_criteria=[criteria], custom_generate=own, **OPTIONS)
        assert torch.equal(made, expected)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_one_seed_draws_the_same_tokens_with_drafting_on_and_off(family: str) -> None:
    model = tiny.model(family)

    def drawn(seed: int | None, drafters: Any, **options: Any) -> list[int]:
        given = OPTIONS | {"temperature": 0.9, "seed": seed} | options
        return longctx.generate(model, TOKENIZER, PROMPT, drafters=drafters, **given).sequences[0].tolist()  # type: ignore[no-any-return]

    off = drawn(3, [])
    truth = off[PROMPT.shape[1] :]
    for drafters in ([Oracle(truth)], "auto", ["ngram", "recycling", "lookup"], ["ngram:growth=rsd_c"]):
        assert drawn(3, drafters) == off
    assert drawn(4, []) != off and drawn(None, []) != drawn(None, [])
    assert drawn(3, ["document"], top_k=5, top_p=0.8) == drawn(3, [], top_k=5, top_p=0.8)
    residual = {"acceptance": "residual", "controller": "fixed:nodes=8"}
    assert drawn(3, ["ngram:growth=rsd_c"], **residual) == drawn(3, ["ngram:growth=rsd_c"], **residual)
    state = torch.get_rng_state()
    drawn(3, "auto")
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers were used up"


def test_speculative_stands_in_for_generates_own_decoding() -> None:
    model = tiny.model()
    ended: list[Any] = []
    streamed: list[int] = []

    class Streamer:
        def put(self, tokens: torch.Tensor) -> None:
            streamed.extend(tokens.tolist())

        def end(self) -> None:
            streamed.append(-1)

    decode = longctx.speculative(["document"], on_end=lambda *what: ended.append(what), streamer=Streamer())
    given: dict[str, Any] = {"attention_mask": torch.ones_like(PROMPT), "do_sample": False, **OPTIONS}
    out = model.generate(PROMPT, custom_generate=decode, return_dict_in_generate=True, **given)
    expected = plain(model)
    assert torch.equal(out.sequences, expected)
    assert streamed == [*expected[0, PROMPT.shape[1] :].tolist(), -1]
    assert ended[0][0].tokens == 24 and ended[0][1] == ()


def test_a_streamer_gets_prompt_and_answer_and_its_end_after_a_failure_too() -> None:
    class Streamer:
        def __init__(self) -> None:
            self.got: list[int] = []
            self.ended = 0

        def put(self, tokens: torch.Tensor) -> None:
            self.got += tokens.flatten().tolist()

        def end(self) -> None:
            self.ended += 1

    model = tiny.model()
    ours, theirs = Streamer(), Streamer()
    longctx.generate(model, TOKENIZER, PROMPT, drafters=["document"], streamer=ours, **OPTIONS)
    plain(model, streamer=theirs)
    assert ours.got == theirs.got and ours.ended == theirs.ended == 1

    class Broken(Oracle):
        def propose(self, budget: Budget) -> Draft:
            raise ZeroDivisionError("no")

    waiting = Streamer()
    with pytest.raises(DraftError):
        longctx.generate(model, TOKENIZER, PROMPT, drafters=[Broken([])], streamer=waiting, **OPTIONS)
    assert waiting.ended == 1


def test_a_batch_of_padded_prompts_gives_each_its_own_answer() -> None:
    model = tiny.model()
    long, short = PROMPT[0].tolist(), PROMPT[0, 3:10].tolist()
    batch = torch.tensor([long, [1] * (len(long) - len(short)) + short])
    mask = torch.tensor([[1] * len(long), [0] * (len(long) - len(short)) + [1] * len(short)])
    alone = [plain(model, torch.tensor([row]), eos_token_id=None)[0, len(row) :].tolist() for row in (long, short)]
    eos = alone[1][5]
    out = longctx.generate(
        model, TOKENIZER, batch, drafters=["document"], attention_mask=mask, **OPTIONS | {"eos_token_id": eos}
    )
    for row, answer in zip(out.sequences[:, len(long) :].tolist(), alone, strict=True):
        kept = answer[: answer.index(eos) + 1] if eos in answer else answer
        assert row[: len(kept)] == kept and set(row[len(kept) :]) <= {1}
    assert len(out.texts) == 2 and out.stats.tokens == sum(len(a[: a.index(eos) + 1] if eos in a else a) for a in alone)


def test_a_filled_cache_of_the_caller_is_continued_and_filled_further() -> None:
    model = tiny.model()
    expected = plain(model)

    def filled() -> DynamicCache:
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(PROMPT[:, :12], past_key_values=cache)
        return cache

    cache = filled()
    out = longctx.generate(model, TOKENIZER, PROMPT, drafters=["document"], past_key_values=cache, **OPTIONS)
    assert torch.equal(out.sequences, expected)
    assert cache.get_seq_length() == expected.shape[1] - 1 and "caller" in out.warnings[0]
    with pytest.raises(CacheError, match="12 tokens"):
        longctx.generate(model, TOKENIZER, PROMPT[:, :12], past_key_values=filled(), **OPTIONS)


def test_prompts_that_would_share_a_cache_are_refused() -> None:
    """Their tokens would stand behind one another in it."""
    model = tiny.model()
    both = torch.cat((PROMPT, PROMPT.flip(1)))
    for given in ({"past_key_values": DynamicCache(config=model.config)}, {"cache_implementation": "static"}):
        with pytest.raises(CacheError, match="2 prompts"):
            longctx.generate(model, TOKENIZER, both, **OPTIONS | given)


@pytest.mark.parametrize("options", [{"min_new_tokens": 5}, {"min_length": 42}, {"repetition_penalty": 1.3}])
def test_processors_and_criteria_see_the_padding_as_in_plain_decoding(options: dict[str, Any]) -> None:
    model = tiny.model()
    padded = torch.cat((torch.ones(1, 10, dtype=torch.long), PROMPT), 1)
    mask = torch.cat((torch.zeros(1, 10, dtype=torch.long), torch.ones_like(PROMPT)), 1)
    given = options | {"eos_token_id": plain(model)[0, PROMPT.shape[1] + 6].item(), "attention_mask": mask}
    out = longctx.generate(model, TOKENIZER, padded, drafters=["document"], **STEADILY | given)
    assert torch.equal(out.sequences, plain(model, padded, **given))


LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "factor": 4.0}
LONGROPE |= {"long_factor": [float(2 + i) for i in range(8)]}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


@pytest.mark.parametrize(
    ("family", "tokens", "promise"),
    [
        ("phi3", 1300, "exact"),  # long from the first token, and more than one piece of prefill
        ("phi3", 12, "exact"),  # short to the end
        ("phi3", 30, "approximate"),
        ("llama", 1300, "approximate"),
        ("llama", 30, "approximate"),
        ("llama", 12, "exact"),
    ],
)
def test_frequencies_that_follow_the_length_are_those_of_plain_decoding(family: str, tokens: int, promise: str) -> None:
    """Published mistake: rows beyond a switch of longrope or dynamic RoPE, or pieces before it, change all others."""

    def fresh() -> Any:  # dynamic frequencies remember the longest text they saw
        at = 1100 if tokens > 1100 and family == "phi3" else 40
        rope, most = (LONGROPE | {"original_max_position_embeddings": at}, 4096) if family == "phi3" else (DYNAMIC, at)
        changes = {"rope_parameters": rope, "original_max_position_embeddings": at, "max_position_embeddings": most}
        return tiny.model(family, **changes)

    prompt = PROMPT.repeat(1, 49)[:, :tokens]
    switched = family == "phi3" and promise == "approximate"  # there Hugging Face computes the whole prompt anew
    drafters = [Oracle(plain(fresh(), prompt)[0, tokens:].tolist()), "recycling"]
    expected = plain(fresh(), prompt)
    if switched:
        expected = longctx.generate(fresh(), TOKENIZER, prompt, drafters=[], **OPTIONS).sequences
    for given in ([], drafters):
        out = longctx.generate(fresh(), TOKENIZER, prompt, drafters=given, **STEADILY)
        assert torch.equal(out.sequences, expected) and out.guarantee == out.stats.guarantee == promise
    assert (out.stats.accepted > 0) == (tokens < 40 or family == "phi3")


@pytest.mark.parametrize("kind", [bool, torch.tensor])
def test_a_criterion_may_say_yes_or_no_in_either_way(kind: Any) -> None:
    model = tiny.model()

    def over(ids: torch.Tensor, scores: Any, **options: Any) -> Any:
        return kind(ids.shape[1] >= PROMPT.shape[1] + 7)

    decode = longctx.speculative(drafters=["document"], controller="fixed:nodes=8")
    out = model.generate(PROMPT, do_sample=False, stopping_criteria=[over], custom_generate=decode, **OPTIONS)
    assert torch.equal(out, plain(model)[:, : PROMPT.shape[1] + 7])


def test_what_has_no_such_name_is_refused_before_the_model_is_asked() -> None:
    with pytest.raises(BadOption, match="acceptance='residuals' is not one of shared-noise, residual"):
        longctx.speculative(acceptance="residuals")  # type: ignore[arg-type]
    with pytest.raises(UnknownMethod, match="nonsense"):
        longctx.speculative(controller="nonsense")


def test_a_drafter_that_raises_is_an_error_of_its_name() -> None:
    class Broken(Oracle):
        def propose(self, budget: Budget) -> Draft:
            raise ZeroDivisionError("no")

    with pytest.raises(DraftError, match="'broken' failed .ZeroDivisionError: no."):
        longctx.generate(tiny.model(), TOKENIZER, PROMPT, drafters=[Broken([])], **OPTIONS)

    class Unwilling(Oracle):
        def begin(self, source: DraftSource) -> Oracle:
            raise ZeroDivisionError("no")

    with pytest.raises(DraftError, match="'unwilling' failed"):
        longctx.generate(tiny.model(), TOKENIZER, PROMPT, drafters=[Unwilling([])], **OPTIONS)


def test_the_guarantee_is_exact_in_wide_floats_and_without_drawing_only() -> None:
    assert guarantee(tiny.model(), 0.0, 9, 99) == "exact"
    assert guarantee(tiny.model(), 0.5, 9, 99) == "exact-up-to-float"
    assert guarantee(tiny.model(dtype=torch.bfloat16), 0.0, 9, 99) == "exact-up-to-float"


def test_a_model_in_training_mode_decodes_without_dropout_and_stays_in_training_mode() -> None:
    model = tiny.model(attention_dropout=0.5)
    expected = plain(model)
    model.train()
    out = longctx.generate(model, TOKENIZER, PROMPT, **OPTIONS)
    assert torch.equal(out.sequences, expected)
    assert all(module.training for module in model.modules())
    assert model.config._attn_implementation == "eager"
