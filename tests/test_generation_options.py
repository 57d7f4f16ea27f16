"""What ``generate`` and ``speculative`` take as a prompt and as options, and what they refuse by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from generators import OPTIONS, PROMPT, TOKENIZER, plain
from transformers import T5Config, T5ForConditionalGeneration

import longctx
from longctx.errors import BadOption, EmptyInput, UnknownMethod

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"num_beams": 2}, BadOption, "num_beams=2"),
        ({"return_dict_in_generate": True, "output_logits": True}, BadOption, "output_logits"),
        ({"temperature": -1.0}, BadOption, "temperature=-1"),
        ({"temperature": float("nan")}, BadOption, "temperature=nan"),
        ({"temperature": float("inf")}, BadOption, "temperature=inf"),
        ({"stop": [""]}, BadOption, "none of them empty"),
        ({"stop": "the"}, BadOption, "list of strings"),
        ({"stop": None}, BadOption, "stop=None must be a list of strings"),
        ({"temperature": None}, BadOption, "temperature=None must be"),
        ({"temperature": "0.5"}, BadOption, "temperature='0.5' must be"),
        ({"max_new_tokens": None}, BadOption, "max_new_tokens=None must be"),
        ({"seed": "one"}, BadOption, "seed='one' must be"),
        ({"drafters": None}, BadOption, "drafters=None must be"),
        ({"drafters": 7}, BadOption, "drafters=7 must be"),
        ({"controller": None}, BadOption, "controller=None must be"),
        ({"penalty_alpha": 0.6, "top_k": 4}, BadOption, "contrastive"),
        ({"prompt_lookup_num_tokens": 3}, BadOption, "assisted"),
        ({"assistant_model": tiny.model()}, BadOption, "assistant_model"),
        ({"position_ids": torch.arange(27)[None] + 50}, BadOption, "position_ids"),
        ({"inputs_embeds": torch.zeros(1, 27, 64)}, BadOption, "inputs_embeds"),
        ({"max_new_tokens": 0}, BadOption, "max_new_tokens=0"),
        ({"drafters": ["document", "document"]}, BadOption, "named twice"),
        ({"drafters": ["nonsense"]}, UnknownMethod, "no drafter named 'nonsense'"),
        ({"drafters": ["document:places=x"]}, BadOption, "places"),
        ({"acceptance": "hope", "temperature": 1.0}, BadOption, "acceptance='hope'"),
    ],
)
def test_what_cannot_be_had_is_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        longctx.generate(tiny.model(), TOKENIZER, PROMPT, **OPTIONS | options)
    with pytest.raises(EmptyInput, match="no tokens"):
        longctx.generate(tiny.model(), TOKENIZER, torch.zeros(1, 0, dtype=torch.long))


def test_wrong_types_are_refused_when_a_function_for_generate_is_made() -> None:
    for options in ({"drafters": None}, {"seed": 0.5}):
        with pytest.raises(BadOption, match="must be"):
            longctx.speculative(**options)  # type: ignore[arg-type]
    assert longctx.speculative("none", seed=np.int64(3))


def test_a_seed_of_numpy_draws_what_pythons_does() -> None:
    options = OPTIONS | {"temperature": 1.0, "drafters": []}
    both = [
        longctx.generate(tiny.model(), TOKENIZER, PROMPT, seed=seed, **options) for seed in (2**40, np.int64(2**40))
    ]
    assert torch.equal(both[0].sequences, both[1].sequences)


def test_drafters_may_be_named_in_one_string_as_on_the_command_line() -> None:
    options = OPTIONS | {"controller": "fixed:nodes=8", "seed": 1}
    both = [
        longctx.generate(tiny.model(), TOKENIZER, PROMPT, drafters=named, **options)  # type: ignore[arg-type]
        for named in ("document + ngram:growth=rsd_s", ["document", "ngram:growth=rsd_s"])
    ]
    assert torch.equal(both[0].sequences, both[1].sequences)
    assert both[0].stats.drafted_by_source == both[1].stats.drafted_by_source and both[0].stats.drafted > 0
    assert set(both[0].stats.drafted_by_source) == {"document", "ngram"}
    with pytest.raises(UnknownMethod, match="no drafter named ''"):
        longctx.generate(tiny.model(), TOKENIZER, PROMPT, drafters="document+")


def test_nothing_is_drafted_where_none_is_asked_for() -> None:
    words, empty = (longctx.generate(tiny.model(), TOKENIZER, PROMPT, drafters=d, **OPTIONS) for d in ("none", []))
    assert words.stats.drafted == 0 and torch.equal(words.sequences, empty.sequences)


@pytest.mark.parametrize("tensors", [None, "np", "pt"])
def test_what_a_tokenizer_returns_is_a_prompt(tensors: str | None) -> None:
    model, given = tiny.model(), TOKENIZER("the river of the north", return_tensors=tensors)
    expected = plain(model, torch.as_tensor(TOKENIZER("the river of the north")["input_ids"])[None])
    assert torch.equal(longctx.generate(model, TOKENIZER, given, **OPTIONS).sequences, expected)
    assert torch.equal(longctx.generate(model, TOKENIZER, dict(given), **OPTIONS).sequences, expected)


def test_the_mask_that_a_tokenizer_returns_holds() -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer(padding_side="left")
    texts = ["the river of the north was there before the winter", "the street"]
    given = tokenizer(texts, padding=True, return_tensors="pt")
    assert not given["attention_mask"].all()
    given["input_ids"][given["attention_mask"] == 0] = 9  # no token that generate itself would take for padding
    out = longctx.generate(model, tokenizer, given, drafters=["document"], **OPTIONS)
    for row, text in zip(out.sequences, texts, strict=True):
        alone = plain(model, tokenizer(text, return_tensors="pt")["input_ids"])
        assert row[-24:].tolist() == alone[0, -24:].tolist()


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        (None, {}, "NoneType must be numbers"),
        (["the"], {}, "must be numbers"),
        ([[1, 2], [3]], {}, "rows of one length"),
        ([1.5], {}, "must be whole numbers"),
        ([True], {}, "must be whole numbers"),
        (5, {}, r"shape \(\)"),
        ([[[1]]], {}, r"shape \(1, 1, 1\)"),
        ({"ids": [1]}, {}, "holds ids, and no 'input_ids'"),
        ({}, {}, "holds nothing"),
        ({"input_ids": [5, 6], "attention_mask": [1]}, {}, r"attention_mask of shape \(1,\) is not that of 2 tokens"),
        ({"input_ids": [5, 6], "attention_mask": [1, 1]}, {"attention_mask": [1, 1]}, "given twice"),
        ([5, 6], {"attention_mask": "11"}, "attention_mask is a text"),
    ],
)
def test_what_are_no_ids_is_refused(given: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadOption, match=says):
        longctx.generate(tiny.model(), TOKENIZER, given, **OPTIONS | options)


def test_a_model_of_two_stacks_is_refused() -> None:
    config = T5Config(vocab_size=480, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0)
    with pytest.raises(BadOption, match="t5 model"):
        longctx.generate(T5ForConditionalGeneration(config).eval(), TOKENIZER, PROMPT, **OPTIONS)


def test_a_whole_temperature_and_a_dictionary_of_results_are_taken() -> None:
    model = tiny.model()
    drawn = [longctx.generate(model, TOKENIZER, PROMPT, temperature=t, seed=1, **OPTIONS).text for t in (2, 2.0)]
    assert drawn[0] == drawn[1]
    out = longctx.generate(model, TOKENIZER, PROMPT, return_dict_in_generate=True, **OPTIONS)
    assert torch.equal(out.sequences, plain(model))


def test_without_a_seed_every_generation_and_every_row_draws_its_own() -> None:
    model = tiny.model()
    decode = longctx.speculative(["document"])
    rows = [model.generate(PROMPT, do_sample=True, custom_generate=decode, **OPTIONS) for _ in range(2)]
    assert not torch.equal(*rows)
    given = OPTIONS | {"temperature": 1.0, "seed": 5}
    one, two = longctx.generate(model, TOKENIZER, PROMPT.repeat(2, 1), **given).sequences
    assert not torch.equal(one, two)
    assert torch.equal(one, longctx.generate(model, TOKENIZER, PROMPT, **given).sequences[0])


def test_what_passes_the_window_of_the_model_is_warned_about() -> None:
    model = tiny.model(max_position_embeddings=40)
    answers = {new: longctx.generate(model, TOKENIZER, PROMPT, **OPTIONS | {"max_new_tokens": new}) for new in (13, 14)}
    assert answers[13].warnings == ()  # 27 and 13: the window to the last token
    assert [said[:42] for said in answers[14].warnings] == ["41 tokens of prompt and answer pass the 40"]
    assert torch.equal(answers[14].sequences, plain(model)[:, :41])  # it is said, and done as generate does it
