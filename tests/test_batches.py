"""A batch of prompts: each gets what it gets alone, in fewer passes of the model than prompts and rounds."""

from __future__ import annotations

import threading
from copy import copy
from typing import Any

import pytest
import tiny
import torch
from transformers import LogitsProcessor

import longctx
from longctx.decoding.noise import row_seed
from longctx.drafts import Budget, Draft, DraftSource, Verified
from longctx.errors import BadOption, EmptyInput

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENIZER = tiny.tokenizer()
PAD = 1
_RUN = torch.randint(4, 470, (9,), generator=torch.Generator().manual_seed(1)).tolist()
PROMPTS = (_RUN * 3, _RUN[2:7], [7, 8, *_RUN[:4] * 5, 9])
OPTIONS: dict[str, Any] = {"max_new_tokens": 18, "eos_token_id": None, "pad_token_id": PAD}
STEADILY = OPTIONS | {"controller": "fixed:nodes=8"}


def padded(prompts: tuple[list[int], ...] = PROMPTS) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = [[*[PAD] * (width - len(prompt)), *prompt] for prompt in prompts]
    mask = [[*[0] * (width - len(prompt)), *[1] * len(prompt)] for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def alone(model: Any, prompt: list[int], **options: Any) -> list[int]:
    with torch.inference_mode():
        out = model.generate(torch.tensor([prompt]), do_sample=False, **OPTIONS | options)
    return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def new(out: torch.Tensor) -> list[list[int]]:
    return out[:, max(map(len, PROMPTS)) :].tolist()  # type: ignore[no-any-return]


class Knowing:
    """Knows the answer to every prompt, and says each fourth token wrong."""

    needs = 0

    def __init__(self, answers: list[list[int]]) -> None:
        self.answers = {tuple(prompt): answer for prompt, answer in zip(PROMPTS, answers, strict=True)}

    def begin(self, source: DraftSource) -> Knowing:
        own = copy(self)
        own.said, own.left = 0, self.answers[tuple(source.prompt.tolist())]  # type: ignore[attr-defined]
        return own

    def propose(self, budget: Budget) -> Draft:
        chain = [(t + (i % 4 == 3)) % tiny.VOCAB for i, t in enumerate(self.left)][self.said :]  # type: ignore[attr-defined]
        return Draft.chain(chain[: budget.depth], [0.9] * len(chain[: budget.depth]))

    def observe(self, verified: Verified) -> None:
        self.said += len(verified.tokens)  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_prompt_gets_what_it_gets_alone_in_passes_that_all_share(family: str) -> None:
    model = tiny.model(family)
    expected = [alone(model, prompt) for prompt in PROMPTS]
    drafters = ["document", "recycling", Knowing(expected)]
    out = longctx.generate(model, TOKENIZER, drafters=drafters, **padded(), **STEADILY)
    assert new(out.sequences) == expected and out.warnings == () and out.guarantee == "exact"
    singles = [longctx.generate(model, TOKENIZER, [prompt], drafters=drafters, **STEADILY).stats for prompt in PROMPTS]
    assert out.stats.rounds == sum(one.rounds for one in singles) < 3 * 10
    assert out.stats.accepted == sum(one.accepted for one in singles) > 3 * 8
    assert out.stats.each_round == () and all(len(one.each_round) == one.rounds for one in singles)
    # a pass for each prompt itself, and then as many as the slowest needs
    assert out.stats.passes == len(PROMPTS) - 1 + max(one.rounds for one in singles)


def test_plain_decoding_and_generate_itself_share_passes_too() -> None:
    model = tiny.model("mistral")
    expected = [alone(model, prompt) for prompt in PROMPTS]
    out = longctx.generate(model, TOKENIZER, drafters=[], **padded(), **STEADILY)
    assert new(out.sequences) == expected and out.stats.passes == len(PROMPTS) + 17
    ended: list[Any] = []
    inside = longctx.speculative(
        [Knowing(expected)], controller="fixed:nodes=8", on_end=lambda *what: ended.append(what)
    )
    assert new(model.generate(do_sample=False, custom_generate=inside, **padded(), **OPTIONS)) == expected
    assert ended[0][0].passes < 12 and ended[0][1] == ()


def test_prompts_end_each_at_its_own_end_and_options_hold() -> None:
    model = tiny.model("qwen2")
    eos = alone(model, PROMPTS[1])[4]
    options = {"eos_token_id": eos, "repetition_penalty": 1.3, "min_new_tokens": 3}
    out = longctx.generate(model, TOKENIZER, drafters="auto", **padded(), **STEADILY | options)
    with torch.inference_mode():
        expected = model.generate(do_sample=False, **padded(), **OPTIONS | options)
    assert torch.equal(out.sequences, expected)
    ends = [row.index(eos) if eos in row else 18 for row in new(expected)]
    assert len(set(ends)) > 1, "the prompts should end apart"


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_prompt_i_draws_what_it_draws_alone_with_the_seed_of_row_i(family: str) -> None:
    model = tiny.model(family)
    given = OPTIONS | {"temperature": 0.9}
    out = longctx.generate(model, TOKENIZER, seed=3, drafters=["document", "ngram"], **padded(), **given)
    for row, (prompt, drawn) in enumerate(zip(PROMPTS, new(out.sequences), strict=True)):
        single = longctx.generate(model, TOKENIZER, [prompt], drafters=[], seed=row_seed(3, row), **given)
        assert single.sequences[0, len(prompt) :].tolist() == drawn
    assert row_seed(3, 0) == 3


class Remembering(LogitsProcessor):  # type: ignore[misc]
    """Forbids the likeliest token in every third call, by its own count: prompts that share it count together."""

    def __init__(self) -> None:
        self.shown: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.shown.append(scores.argmax(-1, keepdim=True))
        return scores if len(self.shown) % 3 else scores.scatter(1, self.shown[-1], -torch.inf)


def test_a_processor_that_remembers_its_calls_remembers_those_of_each_prompt() -> None:
    model = tiny.model()
    expected = [alone(model, prompt, logits_processor=[Remembering()]) for prompt in PROMPTS]
    assert expected != [alone(model, prompt) for prompt in PROMPTS]
    for drafters in ([], ["document", Knowing(expected)]):
        given = Remembering()
        out = longctx.generate(model, TOKENIZER, drafters=drafters, logits_processor=[given], **padded(), **STEADILY)
        assert new(out.sequences) == expected and not given.shown


def test_a_processor_that_cannot_be_copied_is_refused_for_several_prompts() -> None:
    given = Remembering()
    given.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(BadOption, match="cannot be copied .*one prompt at a time"):
        longctx.generate(tiny.model(), TOKENIZER, logits_processor=[given], **padded(), **STEADILY)


def test_a_streamer_gets_the_answers_one_after_another() -> None:
    model = tiny.model()
    got: list[int] = []

    class Streamer:
        def put(self, tokens: torch.Tensor) -> None:
            got.extend(tokens.tolist())

        def end(self) -> None:
            got.append(-1)

    decode = longctx.speculative(["document"], streamer=Streamer(), controller="fixed:nodes=8")
    out = model.generate(do_sample=False, custom_generate=decode, **padded(), **OPTIONS)
    assert got == [*(token for row in new(out) for token in row), -1]


def test_where_prompts_cannot_share_a_pass_one_follows_the_other_and_a_warning_says_so() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = tiny.model(rope_parameters=rope)
    out = longctx.generate(model, TOKENIZER, drafters=["document"], **padded(), **STEADILY)
    assert new(out.sequences) == [alone(model, prompt) for prompt in PROMPTS]
    assert "one after another" in out.warnings[0] and out.stats.passes == out.stats.rounds


def test_a_prompt_of_padding_only_is_refused_by_its_number() -> None:
    given = padded()
    given["attention_mask"][1] = 0
    with pytest.raises(EmptyInput, match=r"of 3 prompts, number 1 .* nothing but padding"):
        longctx.generate(tiny.model(), TOKENIZER, **given, **STEADILY)
