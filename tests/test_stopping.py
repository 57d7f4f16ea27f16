"""When generations end beside generate: criteria that count calls or rows, strings of the model's own, and padding."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from generators import OPTIONS, PROMPT, STEADILY, TOKENIZER, plain
from readers import attentionless
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, MaxLengthCriteria, StoppingCriteria

import longctx
from longctx.errors import BadOption

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = torch.cat((PROMPT, torch.randint(4, 470, (1, 27), generator=torch.Generator().manual_seed(2))))


class Counting(StoppingCriteria):
    """Ends every answer with its eighth call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Any, scores: Any, **given: Any) -> Any:
        self.calls += 1
        return torch.full((len(input_ids),), self.calls >= 8)


class ByRow(StoppingCriteria):
    """Remembers of every row of the batch whether it is done: the first after three tokens, the second after nine."""

    def __init__(self) -> None:
        self.done = [False, False]

    def __call__(self, input_ids: Any, scores: Any, **given: Any) -> Any:
        new = input_ids.shape[1] - PROMPTS.shape[1]
        self.done = [done or new >= most for done, most in zip(self.done, (3, 9), strict=True)]
        return torch.tensor([self.done[row] for row in range(len(input_ids))])


@pytest.mark.parametrize("kind", [Counting, ByRow])
@pytest.mark.parametrize("drafters", ["none", "document"])
def test_criteria_of_a_batch_see_what_they_see_in_generate(kind: type[StoppingCriteria], drafters: str) -> None:
    model = tiny.model()
    reasons: list[Any] = []

    def end(stats: Any, warnings: Any) -> None:
        reasons.append((stats.lengths, stats.finish_reasons))

    decode: Any = longctx.speculative(drafters, controller="fixed:nodes=8", on_end=end)
    options = OPTIONS | {"eos_token_id": 479}  # without one, generate goes on with rows that are done
    expected = model.generate(PROMPTS, do_sample=False, stopping_criteria=[kind()], **options)
    out = model.generate(PROMPTS, do_sample=False, stopping_criteria=[kind()], custom_generate=decode, **options)
    assert torch.equal(out, expected)
    assert reasons == [((8, 8) if kind is Counting else (3, 9), ("stop", "stop"))]


class Shorter(MaxLengthCriteria):
    """Ends an answer by a length, and by its seventh token too."""

    def __call__(self, input_ids: Any, scores: Any, **given: Any) -> Any:
        return super().__call__(input_ids, scores, **given) | (input_ids.shape[1] >= PROMPT.shape[1] + 7)


def test_a_criterion_of_a_length_and_more_is_asked_as_any_other() -> None:
    """Only transformers' own takes the place of the limit that generate was given."""
    model, long = tiny.model(), PROMPT.shape[1] + 500
    criteria: list[Any] = [Shorter(long, None)]
    expected = model.generate(PROMPT, do_sample=False, stopping_criteria=criteria, **OPTIONS)
    assert expected.shape[1] == PROMPT.shape[1] + 7
    out = model.generate(
        PROMPT, do_sample=False, stopping_criteria=criteria, custom_generate=longctx.speculative([]), **OPTIONS
    )
    assert torch.equal(out, expected)


@pytest.mark.parametrize("most", [-19, 0, 1])
def test_a_limit_that_the_prompt_has_reached_ends_with_the_next_token(most: int) -> None:
    model = tiny.model()
    criteria: list[Any] = [MaxLengthCriteria(PROMPT.shape[1] + most)]
    expected = model.generate(PROMPT, do_sample=False, stopping_criteria=criteria, **OPTIONS)
    ended: list[Any] = []
    decode: Any = longctx.speculative([], on_end=lambda stats, warnings: ended.append(stats))
    out = model.generate(PROMPT, do_sample=False, stopping_criteria=criteria, custom_generate=decode, **OPTIONS)
    assert torch.equal(out, expected) and expected.shape[1] == PROMPT.shape[1] + 1
    assert ended[0].lengths == (1,) and ended[0].finish_reasons == ("length",)


@pytest.mark.parametrize("by_token", [True, False])
def test_every_criterion_hears_of_the_last_token(by_token: bool) -> None:
    """Whether transformers' own ends the answer or the first of two others does."""
    model = tiny.model()
    new = plain(model)[0, PROMPT.shape[1] :].tolist()
    ending = next(token for at, token in enumerate(new) if at > 2 and token not in new[:at])
    options = OPTIONS | ({"eos_token_id": ending} if by_token else {})
    heard: list[list[int]] = []
    for decode in ({}, {"custom_generate": longctx.speculative(["document"], controller="fixed:nodes=8")}):
        criteria: list[Any] = [Counting(), Counting()]
        model.generate(PROMPT, do_sample=False, stopping_criteria=criteria, **options, **decode)  # type: ignore[arg-type]
        heard.append([one.calls for one in criteria])
    assert heard[0] == heard[1] and min(heard[0]) > 2


@pytest.mark.parametrize("pad", [None, 7])
def test_answers_that_end_early_are_padded_as_generate_pads_them(pad: int | None) -> None:
    model = tiny.model()
    new = plain(model)[0, PROMPT.shape[1] :].tolist()
    ends = next(token for at, token in enumerate(new) if at > 2 and token not in new[:at])
    model.generation_config.pad_token_id = pad
    options = OPTIONS | {"eos_token_id": ends, "pad_token_id": pad}
    expected = model.generate(PROMPTS, do_sample=False, **options)
    assert (expected[0, -4:] == (ends if pad is None else pad)).all()
    out = longctx.generate(model, TOKENIZER, PROMPTS, drafters=[], **options)
    assert torch.equal(out.sequences, expected)
    length = out.stats.lengths[0]
    assert length < out.stats.lengths[1] and out.texts[0] == TOKENIZER.decode(new[:length], skip_special_tokens=True)


def test_stop_strings_of_the_model_end_its_answers_and_an_option_of_that_name_is_refused() -> None:
    model = tiny.model()
    new = plain(model)[0, PROMPT.shape[1] :].tolist()
    ending = TOKENIZER.decode(new[5:7])
    with pytest.raises(BadOption, match="stop_strings= cannot be had: stop= takes them"):
        longctx.generate(model, TOKENIZER, PROMPT, stop_strings=[ending])
    for strings in ([ending], ending):
        model.generation_config.stop_strings = strings
        expected = model.generate(PROMPT, do_sample=False, tokenizer=TOKENIZER, **OPTIONS)
        out = longctx.generate(model, TOKENIZER, PROMPT, drafters=[], **OPTIONS)
        assert torch.equal(out.sequences, expected) and out.finish_reasons == ("stop",)


def test_a_configuration_that_says_what_arguments_say_is_refused_and_any_other_taken() -> None:
    model = tiny.model()
    for given in ({"max_new_tokens": 5}, {"do_sample": True}, {"do_sample": True, "temperature": 0.7}):
        with pytest.raises(BadOption, match=f"generation_config= sets .*{list(given)[-1]}"):
            longctx.generate(model, TOKENIZER, PROMPT, generation_config=GenerationConfig(**given))
    unsaid = plain(model)[0, PROMPT.shape[1] :].tolist()[3:5]
    config = GenerationConfig(suppress_tokens=unsaid, return_dict_in_generate=True, pad_token_id=1)
    out = longctx.generate(model, TOKENIZER, PROMPT, drafters=[], generation_config=config, max_new_tokens=12)
    expected = plain(model, max_new_tokens=12, suppress_tokens=unsaid)
    assert torch.equal(out.sequences, expected) and not torch.equal(expected, plain(model, max_new_tokens=12))


def test_what_is_done_otherwise_is_a_warning_of_python_where_nobody_else_is_told() -> None:
    model = attentionless()
    ids = torch.randint(4, 40, (1, 12), generator=torch.Generator().manual_seed(1))
    with pytest.warns(UserWarning, match="one token at a time, without drafts"):
        model.generate(ids, do_sample=False, max_new_tokens=4, custom_generate=longctx.speculative())
    told: list[Any] = []
    decode: Any = longctx.speculative(on_end=lambda stats, warnings: told.extend(warnings))
    model.generate(ids, do_sample=False, max_new_tokens=4, custom_generate=decode)
    assert len(told) == 1 and "one token at a time" in told[0]


def test_a_streamer_is_ended_where_a_request_is_refused() -> None:
    class Streamer:
        ended = False

        def put(self, value: Any) -> None: ...

        def end(self) -> None:
            self.ended = True

    streamer = Streamer()
    decode: Any = longctx.speculative(streamer=streamer)
    with pytest.raises(BadOption, match="num_beams=2"):
        tiny.model().generate(PROMPT, num_beams=2, custom_generate=decode, **OPTIONS)
    assert streamer.ended


@pytest.mark.parametrize("prompt", [50, 63, 64])
def test_drafts_stay_within_positions_that_were_learned(prompt: int) -> None:
    """Where an answer ends before its limit, drafts used to ask for positions that the model has no row for."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=480, n_embd=64, n_layer=2, n_head=4, n_positions=64, tie_word_embeddings=False)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    ids = torch.randint(4, 470, (1, 5), generator=torch.Generator().manual_seed(1)).repeat(1, 13)[:, :prompt]
    most = 64 - prompt + 1  # the last token is said and never read
    options: dict[str, Any] = {"eos_token_id": None, "pad_token_id": 1}
    expected = model.generate(ids, do_sample=False, max_new_tokens=most, **options)
    new = expected[0, prompt:].tolist()
    assert len(new) == most and new[-1] not in new[:-1], "the answer ends where the table does"
    options["eos_token_id"] = new[-1]
    answer = longctx.generate(
        model, TOKENIZER, ids, drafters=["document"], max_new_tokens=40, controller="fixed:nodes=16", **options
    )
    assert torch.equal(answer.sequences, expected) and answer.finish_reasons == ("stop",)
    assert answer.stats.drafted > 0 or prompt > 62, "behind the last place nothing can be drafted"


def test_a_shared_pass_keeps_no_cache_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    from longctx.backend import target

    packs: list[weakref.ref[Any]] = []

    def made(*given: Any) -> Any:
        pack = real(*given)
        packs.append(weakref.ref(given[1][0]))  # the cache of the first request
        return pack

    real = target.PackCache
    monkeypatch.setattr(target, "PackCache", made)
    gc.collect()
    gc.disable()
    try:
        longctx.generate(tiny.model(), TOKENIZER, PROMPTS, drafters=["document"], **STEADILY)
        assert packs and all(cache() is None for cache in packs)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["ngram", "random", "adaptive_trigram"])
def test_a_seed_below_nothing_is_refused_before_any_work(name: str) -> None:
    with pytest.raises(BadOption, match="seed=-1"):
        longctx.generate(tiny.model(), TOKENIZER, PROMPT, drafters=[f"{name}:seed=-1"])
