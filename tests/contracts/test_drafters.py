"""What every drafter promises: proposals within its budget that only committed tokens change, and no other answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from scripted import VOCAB, Scripted, plainly

import longctx
from longctx import plugins
from longctx.decoding.acceptance import Greedy, Residual, SharedNoise
from longctx.decoding.controllers.fixed import Fixed
from longctx.decoding.loop import Decoding
from longctx.drafts import Budget, DraftSource

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = plugins.names("drafters")
VARIANTS = [
    *NAMES,
    "ngram:growth=rsd_c",
    "ngram:growth=rsd_s",
    "ngram:growth=dyspec",
    "ngram:growth=dyspec_threshold,least=0.05",
    "rasd:base=ngram",
    "lookup:tokens=3,ngram=3",
]
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, *plainly([2, 6], 30)]
DOCUMENT = np.asarray([*plainly(PROMPT, 60), 7, 7, 7], dtype=np.int32)


def source(document: bool = True) -> DraftSource:
    return DraftSource(np.asarray(PROMPT, dtype=np.int32), VOCAB, DOCUMENT.copy() if document else None)


def decoding(
    spec: str, target: Scripted, rule: Any = None, document: bool = True, new: int = 60, **options: Any
) -> Decoding:
    drafter = plugins.load("drafters", spec)
    at_work = [(spec, drafter.begin(source(document)))]
    rule = Greedy() if rule is None else rule
    options |= {"max_new_tokens": new, "needs": drafter.needs}
    return Decoding(target, PROMPT, rule, at_work, Fixed(12), **options)


@pytest.mark.parametrize("document", [True, False])
@pytest.mark.parametrize("rows", ["tree", "chain"])
@pytest.mark.parametrize("spec", VARIANTS)
def test_the_tokens_are_those_of_plain_decoding(spec: str, rows: Any, document: bool) -> None:
    target = Scripted(rows)
    run = decoding(spec, target, document=document)
    assert list(run.run()) == plainly(PROMPT, 60)
    assert target.passes == run.stats.rounds == 60 - run.stats.accepted


@pytest.mark.parametrize("spec", VARIANTS)
def test_the_tokens_of_a_seed_are_those_of_plain_decoding(spec: str) -> None:
    plain = Decoding(Scripted(), PROMPT, SharedNoise(4), (), Fixed(), max_new_tokens=40)
    assert list(decoding(spec, Scripted(), SharedNoise(4), new=40).run()) == list(plain.run())
    list(decoding(spec, Scripted(), Residual(4), new=40).run())  # another law of choice: only that it runs


@pytest.mark.parametrize("spec", VARIANTS)
def test_proposals_keep_the_budget_and_change_only_with_committed_tokens(spec: str) -> None:
    drafter = plugins.load("drafters", spec)
    given = source()
    before = (given.prompt.copy(), DOCUMENT.copy())
    at_work = drafter.begin(given)
    run = Decoding(Scripted(), PROMPT, Greedy(), [(spec, at_work)], Fixed(9), max_new_tokens=40, needs=drafter.needs)
    proposed = 0
    while not run.done:
        run.round()
        run._draft()  # what was committed is told before the next proposal
        for budget in (Budget(9, 30), Budget(1, 1), Budget(4, 2), Budget(40, 3)):
            draft, again = at_work.propose(budget), at_work.propose(budget)
            assert draft.tokens.tolist() == again.tokens.tolist() and draft.values.tolist() == again.values.tolist()
            depths: list[int] = []
            for node, parent in enumerate(draft.parents.tolist()):
                assert -1 <= parent < node
                depths.append(1 if parent < 0 else depths[parent] + 1)
                assert parent < 0 or draft.values[node] <= draft.values[parent] + 1e-9
            assert max(depths, default=0) <= budget.depth
            assert len(draft) <= budget.nodes
            assert ((draft.values >= 0) & (draft.values <= 1 + 1e-9)).all()
            assert ((draft.tokens >= 0) & (draft.tokens < VOCAB)).all()
            proposed += len(draft)
    assert proposed, "never proposed anything"
    assert (given.prompt == before[0]).all() and given.document is not None and (given.document == before[1]).all()


@pytest.mark.parametrize("spec", VARIANTS)
def test_what_is_told_as_copied_stands_in_the_document(spec: str) -> None:
    run = decoding(spec, Scripted())
    list(run.run())
    for new, place, count in run.stats.copied:
        assert run.new[new : new + count] == DOCUMENT[place : place + count].tolist()
    if spec == "document":
        assert sum(count for _, _, count in run.stats.copied) >= run.stats.accepted // 2 > 0
        ends = [new + count for new, _, count in run.stats.copied]
        assert ends == sorted(ends) and max(count for *_, count in run.stats.copied) > 2


def test_no_copy_is_told_beyond_the_end() -> None:
    for length in range(2, 20):
        run = decoding("document", Scripted(), ends=lambda new, length=length: len(new) == length)  # type: ignore[misc]
        list(run.run())
        assert sum(count for _, _, count in run.stats.copied) == run.stats.accepted
        assert all(new + count <= length for new, _, count in run.stats.copied)


@pytest.mark.parametrize("spec", NAMES)
def test_a_prompt_of_one_token_is_enough(spec: str) -> None:
    drafter = plugins.load("drafters", spec)
    at_work = drafter.begin(DraftSource(np.asarray([5], dtype=np.int32), VOCAB))
    run = Decoding(Scripted(), [5], Greedy(), [(spec, at_work)], Fixed(6), max_new_tokens=12, needs=drafter.needs)
    assert list(run.run()) == plainly([5], 12)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_drafter_and_all_of_them_leave_a_models_answer_as_it_is(family: str) -> None:
    """On text that repeats itself, against Hugging Face's own greedy decoding."""
    model, tokenizer = tiny.model(family), tiny.tokenizer()
    prompt = torch.randint(4, 470, (1, 9), generator=torch.Generator().manual_seed(1)).repeat(1, 3)
    options: dict[str, Any] = {"max_new_tokens": 14, "eos_token_id": None, "pad_token_id": 1}
    stacks: list[tuple[Any, str]] = [([name], "fixed") for name in NAMES]
    stacks += [(NAMES, "fixed"), ("auto", "fixed"), ("auto", "goodput")]
    with torch.inference_mode():
        penalised = model.generate(prompt, do_sample=False, repetition_penalty=1.2, **options)
    pairs = [tokenizer.decode(penalised[0, at : at + 2]) for at in range(prompt.shape[1] + 4, penalised.shape[1] - 2)]
    stop = next(text for text in pairs if "\ufffd" not in text)
    for penalty, ending in ((1.0, []), (1.2, []), (1.2, [stop])):
        ended = {"stop_strings": ending, "tokenizer": tokenizer} if ending else {}
        with torch.inference_mode():
            expected = model.generate(prompt, do_sample=False, repetition_penalty=penalty, **ended, **options)
        assert (expected.shape[1] < prompt.shape[1] + 14) == bool(ending)
        for drafters, controller in stacks:
            out = longctx.generate(
                model, tokenizer, prompt, drafters=drafters, stop=ending, repetition_penalty=penalty,
                controller=controller, **options,
            )  # fmt: skip
            assert torch.equal(out.sequences, expected), (drafters, penalty, ending)
            assert out.stats.rows == "tree" and out.guarantee == "exact" and out.warnings == ()
