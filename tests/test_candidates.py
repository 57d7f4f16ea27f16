"""Candidate generators of Hugging Face as drafters: the same tokens, fewer passes, and a copy of its own a request."""

from __future__ import annotations

import copy
import threading
import time
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from generators import OPTIONS, PROMPT, STEADILY, TOKENIZER, plain
from transformers import GenerationConfig
from transformers.generation.candidate_generator import (
    AssistedCandidateGenerator,
    CandidateGenerator,
    PromptLookupCandidateGenerator,
)

import longctx
from longctx.backend.candidates import Candidates
from longctx.drafts import Budget, DraftSource, Verified
from longctx.errors import DraftError

pytestmark = pytest.mark.usefixtures("one_thread")


def assistant(model: Any, draws: bool = False, tokens: int = 4) -> AssistedCandidateGenerator:
    """A generator that asks ``model``, as Hugging Face's generate makes one."""
    config = GenerationConfig(do_sample=draws, min_length=0, max_length=200, eos_token_id=None, pad_token_id=1)
    made = AssistedCandidateGenerator(PROMPT, model, config, {"attention_mask": torch.ones_like(PROMPT)})
    made.num_assistant_tokens = tokens
    made.generation_config.assistant_confidence_threshold = 0.0  # it says as many as it may
    made.assistant_generation_config.num_assistant_tokens_schedule = "constant"
    return made


def source(text: list[int]) -> DraftSource:
    return DraftSource(np.asarray(text, dtype=np.int32), 480)


class Saying(CandidateGenerator):
    """One of the user's own: says what it is told to, whatever it is asked."""

    def __init__(self, what: list[int]) -> None:
        self.what = what
        self.told: list[tuple[int, int]] = []

    def get_candidates(self, input_ids: Any, **_: Any) -> Any:
        return torch.cat((input_ids, torch.tensor([self.what], dtype=torch.long)), 1), None

    def update_candidate_strategy(self, input_ids: Any, scores: Any, num_matches: int) -> None:
        self.told.append((scores.shape[1] - 1, num_matches))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_prompt_lookup_saves_passes_and_changes_no_token(family: str) -> None:
    model = tiny.model(family)
    prompt = plain(model)  # an answer that repeats the prompt's own beginning
    lookup = PromptLookupCandidateGenerator(num_output_tokens=6, max_matching_ngram_size=2, max_length=500)
    for given in (PROMPT, prompt, torch.cat((prompt, prompt[:, 9:30]), 1)):
        out = longctx.generate(model, TOKENIZER, given, drafters=[lookup], **STEADILY)
        own = longctx.generate(model, TOKENIZER, given, drafters=["lookup:tokens=6,ngram=2"], **STEADILY)
        assert torch.equal(out.sequences, plain(model, given)) and out.guarantee == "exact"
        assert out.stats.accepted == own.stats.accepted
        assert out.stats.accepted_by_source == {"promptlookupcandidategenerator": out.stats.accepted}


@pytest.mark.parametrize("draws", [False, True])
def test_an_assistant_that_is_right_saves_passes_and_one_that_is_wrong_costs_only_rows(draws: bool) -> None:
    model = tiny.model()
    expected = plain(model)
    stranger = tiny.model(seed=5)
    before = torch.get_rng_state()
    same = longctx.generate(model, TOKENIZER, PROMPT, drafters=[assistant(model, draws)], **STEADILY)
    other = longctx.generate(model, TOKENIZER, PROMPT, drafters=[assistant(stranger, draws)], **STEADILY)
    assert torch.equal(same.sequences, expected) and torch.equal(other.sequences, expected)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers were used up"
    if not draws:
        assert other.stats.accepted < 3
        assert same.stats.rounds <= 7 and same.stats.accepted == 24 - same.stats.rounds


def test_an_assistant_beside_other_drafters_goes_on_from_what_was_committed() -> None:
    """What another drafter got right is not in the assistant's cache: there its own wrong tokens would stay."""
    drafter = Candidates(assistant(tiny.model()))
    text = PROMPT[0].tolist()
    at_work = drafter.begin(source(text))
    for committed in ((), (7, 8, 9, 10, 11, 12, 13), (20,), (30, 31), (40, 41, 42, 43, 44, 45, 46, 47, 48)):
        if committed:
            at_work.observe(Verified(committed, np.asarray([0]), np.asarray([-1]), (0,)))
        text += committed
        said = at_work.propose(Budget(8, 8)).tokens.tolist()
        assert said == drafter.begin(source(text)).propose(Budget(8, 8)).tokens.tolist() and len(said) == 4


def test_one_seed_draws_the_same_tokens_with_an_assistant_and_without() -> None:
    model = tiny.model()
    given = OPTIONS | {"temperature": 0.8, "seed": 3}
    drawn = [
        longctx.generate(model, TOKENIZER, PROMPT, drafters=drafters, **given).sequences
        for drafters in ([], [assistant(model)], [assistant(model, draws=True), "document"])
    ]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
    residual = given | {"acceptance": "residual", "controller": "fixed:nodes=8"}
    one, two = (
        longctx.generate(model, TOKENIZER, PROMPT, drafters=[assistant(model, draws=True)], **residual).sequences
        for _ in range(2)
    )
    assert torch.equal(one, two), "one seed, and other tokens"


@pytest.mark.parametrize(
    "what",
    [
        lambda truth: [],
        lambda truth: truth[:1],
        lambda truth: truth * 9,  # far too many
        lambda truth: [truth[0], -4, 10**9],  # ids outside the vocabulary
        lambda truth: [1, 1, 1],
    ],
)
def test_whatever_a_generator_of_the_users_own_says_the_tokens_stay(what: Any) -> None:
    model = tiny.model("qwen2")
    expected = plain(model)
    generator = Saying(what(expected[0, PROMPT.shape[1] :].tolist()))
    out = longctx.generate(model, TOKENIZER, PROMPT, drafters=[generator], **STEADILY)
    assert torch.equal(out.sequences, expected)
    assert generator.told == [], "a request changed the generator it was given"


def test_a_generator_hears_how_much_of_its_word_was_right() -> None:
    at_work = Candidates(Saying([7, 8, 9])).begin(source([3, 4]))
    own = at_work._generator
    for budget, tokens in ((Budget(8, 8), (7, 8, 20)), (Budget(2, 8), (7, 8, 9)), (Budget(8, 8), (1,))):
        draft = at_work.propose(budget)
        assert draft.tokens.tolist() == at_work.propose(budget).tokens.tolist() == [7, 8, 9][: budget.nodes]
        at_work.observe(Verified(tokens, np.asarray([0]), np.asarray([-1]), (0,)))
        at_work.observe(Verified((5,), np.asarray([0]), np.asarray([-1]), (0,)))  # a round it was not asked in
    assert own.told == [(3, 2), (2, 2), (3, 0)]


def test_the_generators_of_two_requests_share_their_model_and_nothing_else() -> None:
    model = tiny.model()
    drafter = Candidates(assistant(model))
    one, two = (drafter.begin(source(PROMPT[0].tolist())) for _ in range(2))
    assert one._generator is not two._generator and one._generator.assistant_model is model
    one.propose(Budget(4, 4))
    assert "past_key_values" in one._generator.assistant_kwargs
    assert "past_key_values" not in two._generator.assistant_kwargs
    assert "past_key_values" not in drafter.generator.assistant_kwargs


def test_what_cannot_draft_is_refused_and_what_fails_is_an_error_of_its_name() -> None:
    class Broken(Saying):
        def get_candidates(self, input_ids: Any, **_: Any) -> Any:
            raise ZeroDivisionError("no")

    class Uncopied(Saying):
        def __deepcopy__(self, memo: Any) -> Any:
            raise copy.Error("not this one")

    for kind in (Broken, Uncopied):
        with pytest.raises(DraftError, match=kind.__name__.lower()):
            longctx.generate(tiny.model(), TOKENIZER, PROMPT, drafters=[kind([])], **OPTIONS)


def verified(*tokens: int) -> Verified:
    return Verified(tokens, np.zeros(1, dtype=np.int64), np.full(1, -1), (0,))


def test_a_generator_that_fails_to_hear_of_a_round_is_told_once_more_and_not_twice() -> None:
    asked: list[list[int]] = []
    fails = iter((True, False))

    class Failing(Saying):
        def get_candidates(self, input_ids: Any, **_: Any) -> Any:
            asked.append(input_ids[0].tolist())
            return super().get_candidates(input_ids)

        def update_candidate_strategy(self, input_ids: Any, scores: Any, num_matches: int) -> None:
            if next(fails):
                raise RuntimeError("not now")

    drafter = Candidates(Failing([5, 6])).begin(source([1, 2, 3]))
    drafter.propose(Budget(4, 4))
    with pytest.raises(RuntimeError, match="not now"):
        drafter.observe(verified(5, 9))
    drafter.observe(verified(5, 9))
    drafter.propose(Budget(4, 4))
    assert asked == [[1, 2, 3], [1, 2, 3, 5, 9]]


def test_generators_of_two_threads_take_turns_and_leave_the_callers_random_numbers_as_they_were() -> None:
    inside: list[int] = []
    both = threading.Barrier(2)

    class Slow(Saying):
        def get_candidates(self, input_ids: Any, **_: Any) -> Any:
            inside.append(1)
            time.sleep(0.05)
            inside.append(-1)
            return super().get_candidates(input_ids)

    def ask(first: int) -> None:
        drafter = Candidates(Slow([5])).begin(source([first, 2, 3]))
        both.wait()
        drafter.propose(Budget(4, 4))

    state = torch.get_rng_state()
    threads = [threading.Thread(target=ask, args=(first,)) for first in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == [1, -1, 1, -1] and torch.equal(torch.get_rng_state(), state)
