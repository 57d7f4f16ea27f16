"""Why an answer ended: by a criterion, or cut off by its limit, also where both meet on one token or inside a draft."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from generators import OPTIONS, PROMPT, STEADILY, TOKENIZER, Knowing, plain
from readers import DOCUMENT, NEEDLE, QUESTION, reader_of
from transformers import MaxLengthCriteria, StoppingCriteriaList

import longctx
from longctx import Document
from longctx.answering import Said, told
from longctx.types import Selection

pytestmark = pytest.mark.usefixtures("one_thread")
MOST = OPTIONS["max_new_tokens"]


def answer() -> tuple[Any, torch.Tensor, list[int]]:
    """A model, its whole plain answer, and the new tokens of that."""
    model = tiny.model()
    whole = plain(model)
    return model, whole, whole[0, PROMPT.shape[1] :].tolist()


@pytest.mark.parametrize("drafted", [False, True])
def test_an_answer_ends_by_its_limit_or_by_a_token_that_ends_it(drafted: bool) -> None:
    model, whole, new = answer()
    drafters: Any = [Knowing(whole, True, [])] if drafted else []
    options = STEADILY | {"drafters": drafters}
    cut = longctx.generate(model, TOKENIZER, PROMPT, **options)
    assert cut.finish_reasons == ("length",) and cut.stats.tokens == MOST
    for at, token in enumerate(new):
        if token not in new[:at]:
            out = longctx.generate(model, TOKENIZER, PROMPT, **options | {"eos_token_id": token})
            assert out.stats.tokens == at + 1 and out.finish_reasons == ("stop",), at
            exactly = options | {"eos_token_id": token, "max_new_tokens": at + 1}
            assert longctx.generate(model, TOKENIZER, PROMPT, **exactly).finish_reasons == ("stop",), "both at once"


def test_prompts_of_a_batch_have_a_reason_each() -> None:
    model, _, new = answer()
    token = next(token for at, token in enumerate(new) if 2 < at < MOST - 2 and token not in new[:at])
    others = torch.randint(4, 470, (4, 27), generator=torch.Generator().manual_seed(3))
    ends = [token in plain(model, row[None])[0, 27:].tolist() for row in others]
    assert not all(ends), "one of them has to go on to its limit"
    prompts = torch.cat((others[ends.index(False)][None], PROMPT))
    out = longctx.generate(model, TOKENIZER, prompts, **STEADILY | {"eos_token_id": token})
    assert out.finish_reasons == ("length", "stop")
    data = out.as_dict()
    assert data["finish_reasons"] == data["stats"]["finish_reasons"] == ["length", "stop"]


@pytest.mark.parametrize("further", [-19, 3])
def test_a_limit_among_the_criteria_takes_the_place_of_generates_own(further: int) -> None:
    model, _, _ = answer()
    reasons: list[Any] = []
    run = longctx.speculative("none", on_end=lambda stats, warnings: reasons.append(stats.finish_reasons))
    options = OPTIONS | {"do_sample": False}
    most = PROMPT.shape[1] + MOST + further
    expected = model.generate(PROMPT, stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(most)]), **options)
    criteria = StoppingCriteriaList([MaxLengthCriteria(most)])
    out = model.generate(PROMPT, custom_generate=run, stopping_criteria=criteria, **options)
    assert torch.equal(out, expected) and out.shape[1] == most and reasons == [("length",)]


def test_answers_about_documents_say_it_too() -> None:
    reader, memo = reader_of(), Document.from_text(NEEDLE)
    prompt = torch.tensor([reader.prompt(memo.text, QUESTION)])
    new = plain(reader.model, prompt)[0, prompt.shape[1] :].tolist()
    at = next(at for at, token in enumerate(new) if at > 1 and token not in new[:at])
    cut = reader.ask(memo, QUESTION, max_new_tokens=at)
    assert cut.finish_reason == "length" and cut.usage["new_tokens"] == at
    *_, last = reader.stream(memo, QUESTION, max_new_tokens=at)
    assert last.answer is not None and last.answer.finish_reason == "length"
    reader.model.generation_config.eos_token_id = new[at]
    ended = reader.ask(memo, QUESTION, max_new_tokens=at + 1)
    assert ended.finish_reason == "stop" and ended.text == cut.text


def test_a_model_that_is_not_asked_is_not_cut_off() -> None:
    book, nothing = reader_of().compile(DOCUMENT), Selection((), "", 0, 0, 0, 0.0)
    assert told(Said("Nothing."), (), nothing, book, 0, (0.0,) * 5, "exact", ()).finish_reason == "stop"
