"""Compressed contexts under ``longctx.speculative``: what it goes on from, refuses and promises."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import tiny
import torch
from contexts import CONTEXT, GREEDY, IDS, SQUEEZED, compressed
from transformers import DynamicCache

import longctx
import longctx.kv
from longctx.errors import CacheError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_speculative_decodes_over_a_bounded_cache() -> None:
    model = tiny.model("llama")
    held = compressed(model, SQUEEZED)
    with held.attached(model) as cache:
        expected = model.generate(IDS, past_key_values=cache, **GREEDY)
    decode = longctx.speculative(drafters=["ngram"])
    with held.attached(model) as cache:
        said = model.generate(IDS, past_key_values=cache, custom_generate=decode, **GREEDY)
    assert torch.equal(said, expected)


@pytest.mark.parametrize(("at", "crosses"), [(80, True), (60, False), (200, False)])
@pytest.mark.parametrize("lent", [False, True])
def test_a_cache_that_was_rotated_as_a_shorter_text_promises_nothing_and_says_so(
    at: int, crosses: bool, lent: bool
) -> None:
    """The context ends below the length at which frequencies change, and the prompt and its answer beyond it."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "factor": 4.0}
    rope |= {"long_factor": [float(2 + i) for i in range(8)], "original_max_position_embeddings": at}
    model = tiny.model("phi3", rope_parameters=rope, original_max_position_embeddings=at)
    tokenizer, options = tiny.tokenizer(), {"max_new_tokens": 12, "drafters": []}
    with compressed(model).attached(model) as cache:
        given: Any = cache
        if lent:
            given = DynamicCache()
            with torch.no_grad():
                model(IDS[:, :CONTEXT], past_key_values=given)
        out = longctx.generate(model, tokenizer, IDS, past_key_values=given, **options)  # type: ignore[arg-type]
        said = [warning for warning in out.warnings if "rotates long texts otherwise" in warning]
        assert out.guarantee == ("approximate" if crosses else "exact") and bool(said) == crosses
        if not lent:
            cache.rewind()
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                for _ in range(2):  # said once of a cache
                    model.generate(
                        IDS[:, CONTEXT:], attention_mask=torch.ones_like(IDS), past_key_values=cache, **GREEDY
                    )
                    cache.rewind()
            assert sum("the 70 tokens in the cache" in str(one.message) for one in heard) == crosses


def test_the_passes_that_measure_a_context_are_no_reason_to_warn() -> None:
    """They read fragments behind it, beyond the length at which frequencies change, and no one asked for that."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "factor": 4.0}
    rope |= {"long_factor": [float(2 + i) for i in range(8)], "original_max_position_embeddings": CONTEXT + 2}
    model = tiny.model("phi3", rope_parameters=rope, original_max_position_embeddings=CONTEXT + 2)
    assert compressed(model, SQUEEZED).warnings == ()


def test_speculative_says_that_another_thread_has_the_context() -> None:
    """It would wait for passes that its own thread's owner keeps until it is done."""
    model, errors = tiny.model("llama"), list[BaseException]()
    with compressed(model).attached(model) as cache:

        def work() -> None:
            try:
                model.generate(IDS, past_key_values=cache, custom_generate=longctx.speculative([]), **GREEDY)
            except CacheError as error:
                errors.append(error)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        worker.join(20)
        assert not worker.is_alive() and "another thread has attached" in str(errors[0])


def test_speculative_refuses_a_prompt_that_does_not_begin_with_the_context() -> None:
    model = tiny.model("llama")
    joined = IDS.clone()
    joined[0, CONTEXT - 1] += 1  # as where the last token of a text takes in the first letters of a question
    decode = longctx.speculative(drafters=["ngram"])
    with compressed(model).attached(model) as cache, pytest.raises(CacheError, match="join at the seam"):
        model.generate(joined, past_key_values=cache, custom_generate=decode, **GREEDY)


@pytest.mark.filterwarnings("ignore:decoded one token at a time")
@pytest.mark.parametrize("copied", [False, True])
def test_speculative_refuses_another_question_behind_what_the_cache_holds(copied: bool) -> None:
    model = tiny.model("llama")
    other = torch.cat((IDS[:, :CONTEXT], IDS[:, 3:40]), 1)
    decode = longctx.speculative(drafters=["ngram"])
    with compressed(model).attached(model) as cache:
        said = model.generate(IDS, past_key_values=cache, custom_generate=decode, **GREEDY)
        further = torch.cat((said, IDS[:, 5:9]), 1)  # the same conversation
        used = cache.fork() if copied else cache
        with pytest.raises(CacheError, match=r"another question. Call rewind\(\)"):
            model.generate(other, past_key_values=used, custom_generate=decode, **GREEDY)
        expected = model.generate(further, **GREEDY)
        assert torch.equal(model.generate(further, past_key_values=used, custom_generate=decode, **GREEDY), expected)
        used.rewind()
        expected = model.generate(other, **GREEDY)
        assert torch.equal(model.generate(other, past_key_values=used, custom_generate=decode, **GREEDY), expected)
