"""The promises of the public face: budgets, whole texts, refusals with numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from readers import (
    BASELINES,
    DOCUMENT,
    NEEDLE,
    QUESTION,
    SELECTORS,
    WINDOW,
    attentionless,
    counted,
    hybrid,
    reader_of,
    story,
)

from longctx import Document, Reader
from longctx.decoding.claims import Refuted
from longctx.decoding.control import Control
from longctx.decoding.controllers.fixed import Fixed
from longctx.decoding.costs import RowCosts
from longctx.errors import BadOption, DoesNotFit, EmptyInput, UnknownMethod

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reader() -> Reader:
    return reader_of()


# --- what a selection is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("budget", [90, 150, 600])
def test_a_selection_stays_within_its_budget_and_accounts_for_every_token(
    name: str, budget: int, reader: Reader
) -> None:
    selection = reader.select(DOCUMENT, QUESTION, budget_tokens=budget, selector=name)
    assert selection.tokens == counted(reader, selection.text) <= budget
    places = [(span.start, span.end) for span in selection.spans]
    assert places and places == sorted(places)
    pieces = [DOCUMENT.text[start:end].strip("\r\n") for start, end in places]
    assert selection.text == "\n\n".join(pieces)
    total = len(reader._tokens.encode(DOCUMENT).token_ids)
    kept = sum(counted(reader, DOCUMENT.text[start:end]) for start, end in places)
    assert selection.dropped_tokens == total - kept > 0
    assert selection.selector == name and selection.seconds > 0
    assert [step.name for step in selection.trace] == ["select", "cut"]
    assert json.loads(json.dumps(selection.as_dict(), allow_nan=False))["tokens"] == selection.tokens
    assert len(selection.profile) > len(places) and "profile" not in selection.as_dict()


@pytest.mark.parametrize("name", [name for name in SELECTORS if name not in BASELINES])
def test_a_text_within_the_budget_is_kept_whole_and_costs_nothing(name: str, reader: Reader) -> None:
    document = Document.from_text(story(5, 2) + "\r\n")
    passes: list[int] = []
    handle = reader.model.register_forward_hook(lambda *_: passes.append(1))
    selection = reader.select(document, "Who, what?", budget_tokens=500, selector=name)
    handle.remove()
    assert [(span.start, span.end) for span in selection.spans] == [(0, len(document.text))]
    assert (selection.tokens_read, selection.dropped_tokens, len(passes)) == (0, 0, 0)
    assert selection.text == document.text.rstrip() and selection.relevant


def test_the_boundary_of_the_budget_is_exact(reader: Reader) -> None:
    document = Document.from_text(story(8, 2))
    tokens = counted(reader, document.text)
    for budget, whole in ((tokens - 1, False), (tokens, True), (tokens + 1, True)):
        selection = reader.select(document, QUESTION, budget_tokens=budget, selector="bm25")
        assert (selection.dropped_tokens == 0) is whole
        assert selection.tokens <= budget


def test_separators_between_documents_count_against_the_budget(reader: Reader) -> None:
    documents = [Document.from_text(f"The river street {i}.", id=str(i)) for i in range(8)]
    apart = sum(counted(reader, document.text) for document in documents)
    together = reader.select(documents, "Which river?", budget_tokens=apart, selector="bm25")
    assert together.dropped_tokens > 0 and together.tokens <= apart
    whole = reader.select(documents, "Which river?", budget_tokens=apart + 30, selector="bm25")
    assert whole.dropped_tokens == 0 and apart < whole.tokens <= apart + 30


def test_all_keeps_the_whole_text_and_says_with_numbers_when_the_window_cannot_hold_it(reader: Reader) -> None:
    short = Document.from_text(story(12, 3))
    answer = reader.ask(short, QUESTION, selector="all", budget_tokens=10, max_new_tokens=3)
    assert answer.selection.dropped_tokens == 0 and answer.selection.text == short.text
    assert answer.usage["prompt_tokens"] > answer.selection.tokens == counted(reader, short.text) > 10
    with pytest.raises(DoesNotFit) as caught:
        reader.ask(DOCUMENT, QUESTION, selector="all", max_new_tokens=7)
    frame = reader._frame.tokens + counted(reader, QUESTION)
    for number in (str(counted(reader, DOCUMENT.text) + frame), " 7 ", str(WINDOW)):
        assert number in str(caught.value)
    assert caught.value.exit_code == 3
    (said,) = answer.warnings
    assert said == f"selector='all' keeps all {answer.selection.tokens} tokens, whatever budget_tokens=10."
    with pytest.raises(BadOption, match="budget_tokens=-5"):
        reader.select(short, QUESTION, selector="all", budget_tokens=-5)


def test_segments_that_pass_the_window_are_refused_only_where_a_text_has_them() -> None:
    reader = reader_of(segment_tokens=4096)
    longest = reader.longest_selection(QUESTION, 3)
    short = Document.from_text(story(5, 2))
    assert reader.ask(short, QUESTION, budget_tokens=longest, selector="bm25", max_new_tokens=3).text is not None
    with pytest.raises(DoesNotFit, match=r"segments of up to \d+ tokens.*Make the reader with segment_tokens="):
        reader.select(Document.from_text(story(200, 100)), QUESTION, budget_tokens=90, selector="bm25")


def test_nothing_relevant_gives_no_span_no_citation_and_no_pass_for_an_answer(reader: Reader) -> None:
    passes: list[int] = []
    handle = reader.model.register_forward_hook(lambda *_: passes.append(1))
    answer = reader.ask(DOCUMENT, "zebra xylophone?", budget_tokens=100, selector="bm25")
    handle.remove()
    assert not answer.selection.relevant and answer.selection.spans == () == answer.citations
    assert "nothing in the text seems related" in answer.warnings[-1]
    assert answer.text and passes == [] and answer.usage["new_tokens"] == answer.usage["prompt_tokens"] == 0
    assert answer.selection.dropped_tokens == answer.usage["document_tokens"]


def test_a_question_about_the_whole_text_is_answered_with_a_warning(reader: Reader) -> None:
    assert "whole text" in reader.select(DOCUMENT, "Summarise it.", budget_tokens=90, selector="head").warnings[0]
    for whole in (reader_of(window=4096).select(DOCUMENT, "Summarise it.", selector=name) for name in ("all", "bm25")):
        assert whole.dropped_tokens == 0 and whole.warnings == ()


def test_without_a_budget_a_small_window_gets_what_it_holds(reader: Reader) -> None:
    longest = reader.longest_selection(QUESTION, 16)
    long = Document.from_text(story(200, 100), id="long")
    found = reader.ask(long, QUESTION, selector="bm25", max_new_tokens=16).selection
    assert longest - 60 < found.tokens <= longest < 2048 and NEEDLE in found.text
    assert f"window of {WINDOW} tokens has room for {longest} of the text" in found.warnings[-1]
    short = reader.ask(Document.from_text(NEEDLE), QUESTION, selector="bm25", max_new_tokens=4)
    assert short.selection.text == NEEDLE and short.warnings == ()
    with pytest.raises(DoesNotFit, match=f"budget_tokens=2048 leaves no room.*{WINDOW} holds at most {longest}"):
        reader.ask(long, QUESTION, budget_tokens=2048, selector="bm25", max_new_tokens=16)


def test_what_is_compiled_is_indexed_also_where_memory_holds_no_segment() -> None:
    book = reader_of(segment_memory_bytes=0).compile(DOCUMENT)
    assert "index" in vars(book) and len(book.memory) == 0 == book.spent()
    full = reader_of().compile(DOCUMENT)
    assert len(full.memory) == len(full.segments) and full.spent() > 0


def test_where_segments_go_is_said_only_of_files(reader: Reader) -> None:
    with pytest.raises(BadOption, match="segment_kv='disk'.*give path="):
        reader.compile(DOCUMENT, segment_kv="disk")
    with pytest.raises(BadOption, match="segment_form='int8'"):
        reader.compile(DOCUMENT, segment_form="int8")


@pytest.mark.parametrize("make", [hybrid, attentionless])
def test_models_whose_layers_have_no_keys_compile_and_are_asked(make: Any) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = WINDOW
    reader = Reader(make(), tokenizer, encoder=None, calibration=None, segment_tokens=128)
    book = reader.compile(DOCUMENT)
    assert "index" in vars(book) and len(book.memory) == 0
    answer = reader.ask(book, QUESTION, budget_tokens=120, max_new_tokens=4)
    assert NEEDLE in answer.selection.text
    assert any("the model's own signals are not used" in warning for warning in answer.warnings)


def test_a_unit_that_no_budget_holds_is_an_error_with_the_smallest_one(reader: Reader) -> None:
    with pytest.raises(DoesNotFit, match=r"budget of 1 tokens; the smallest has \d+"):
        reader.select(DOCUMENT, QUESTION, budget_tokens=1, selector="bm25")


# --- refusals ------------------------------------------------------------------------------------------------------


def test_impossible_numbers_are_refused_before_any_work(reader: Reader) -> None:
    fixed = reader._frame.tokens + counted(reader, QUESTION)
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"budget_tokens": 0}, BadOption, "budget_tokens=0"),
        ({"budget_tokens": -5}, BadOption, "budget_tokens=-5"),
        ({"budget_tokens": WINDOW + 1}, DoesNotFit, f"{WINDOW + 1}.*{WINDOW} holds at most {WINDOW - fixed - 5}"),
        ({"budget_tokens": WINDOW - fixed - 4}, DoesNotFit, f"at most {WINDOW - fixed - 5}"),
        ({"max_new_tokens": 0}, BadOption, "max_new_tokens=0"),
        ({"max_new_tokens": WINDOW}, DoesNotFit, f"{fixed} tokens and {WINDOW} new ones.*{WINDOW}"),
        ({"temperature": -0.5}, BadOption, "temperature=-0.5"),
        ({"temperature": float("nan")}, BadOption, "temperature=nan"),
        ({"temperature": float("inf")}, BadOption, "temperature=inf"),
        ({"selector": "magic"}, UnknownMethod, "no selector named 'magic'. Known: .*bm25.*random"),
        ({"selector": "bm25:weight=3"}, BadOption, "'bm25' has no option 'weight'.*neighbours"),
        ({"selector": "bm25:neighbours=lots"}, BadOption, "'lots' is not float"),
    ]
    for changes, error, message in refused:
        with pytest.raises(error, match=message):
            reader.ask(DOCUMENT, QUESTION, **({"budget_tokens": 100, "max_new_tokens": 5} | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"question": None},
        {"question": b"Where?"},
        {"budget_tokens": "4k"},
        {"budget_tokens": 99.5},
        {"max_new_tokens": None},
        {"temperature": None},
        {"temperature": "0.5"},
        {"seed": "one"},
        {"selector": None},
        {"selector": 7},
        {"drafters": None},
        {"drafters": [None]},
        {"controller": None},
        {"controller": 7},
        {"kv": 7},
        {"progress": "loud"},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_an_error_of_the_library_with_the_value(
    changes: dict[str, Any], reader: Reader
) -> None:
    (value,) = changes.values()
    given = {"question": QUESTION, "budget_tokens": 100, "max_new_tokens": 5} | changes
    with pytest.raises(BadOption) as caught:
        reader.ask(DOCUMENT, **given)
    assert (f"{value[0]!r}" if isinstance(value, list) else f"={value!r} must be") in str(caught.value)
    if "progress" not in changes:
        with pytest.raises(BadOption):
            list(reader.stream(DOCUMENT, **given))


@pytest.mark.parametrize("made", [torch.tensor, np.array, np.int64], ids=["torch", "array", "scalar"])
def test_single_numbers_of_arrays_and_tensors_are_numbers(made: Any, reader: Reader) -> None:
    plain: dict[str, Any] = {"budget_tokens": 100, "max_new_tokens": 5, "temperature": 1.0, "seed": 3}
    wrapped = {name: made(value) for name, value in plain.items() if name != "temperature"}
    wrapped["temperature"] = np.float32(1.0) if made is np.int64 else made(1.0)
    expected = reader.ask(DOCUMENT, QUESTION, **plain).text
    assert reader.ask(DOCUMENT, QUESTION, **wrapped).text == expected
    assert list(reader.stream(DOCUMENT, QUESTION, **wrapped))[-1].answer.text == expected  # type: ignore[union-attr]


def test_a_reader_is_made_with_numbers_and_methods_only() -> None:
    wrong: list[dict[str, Any]] = [{"segment_tokens": None}, {"segment_memory_bytes": "1G"}, {"splitter": None}]
    wrong += [{"segment_memory_bytes": -1}, {"encoder": object()}, {"progress": 7}]
    for options in wrong:
        with pytest.raises(BadOption, match="=.* must be"):
            reader_of(**options)
    for question, new in ((None, 1), (QUESTION, None)):
        with pytest.raises(BadOption):
            reader_of().longest_selection(question, new)  # type: ignore[arg-type]


def test_none_bounds_no_cache_and_drafts_nothing(reader: Reader) -> None:
    asked: dict[str, Any] = {"budget_tokens": 100, "max_new_tokens": 5, "selector": "head"}
    plain = reader.ask(DOCUMENT, QUESTION, kv=None, drafters=[], **asked)
    words = reader.ask(DOCUMENT, QUESTION, kv="none", drafters="none", **asked)
    assert words.text == plain.text and words.warnings == plain.warnings
    facts = next(step.facts for step in words.trace if step.name == "decode")
    assert facts["drafted"] == 0 and "kv" not in facts


class Watching:
    """Counts the requests that it is begun for, and drafts four nodes in each round."""

    def __init__(self) -> None:
        self.begun = 0

    def begin(self, costs: RowCosts | None = None, refuted: Refuted | None = None) -> Control:
        self.begun += 1
        return Fixed(4)


def test_a_controller_is_chosen_by_name_or_object_and_changes_no_word(reader: Reader) -> None:
    asked: dict[str, Any] = {"budget_tokens": 100, "max_new_tokens": 12, "selector": "head", "drafters": ["document"]}
    expected = reader.ask(DOCUMENT, QUESTION, **asked | {"drafters": []}).text
    watching, drafted = Watching(), []
    for controller in (watching, "fixed:nodes=4", "fixed:nodes=0", "smartspec", "threshold:least=0.9"):
        streamed = list(reader.stream(DOCUMENT, QUESTION, controller=controller, **asked))[-1].answer
        answer = reader.ask(DOCUMENT, QUESTION, controller=controller, **asked)
        assert streamed is not None and streamed.text == answer.text == expected
        for one in (answer, streamed):
            drafted.append(next(step.facts for step in one.trace if step.name == "decode")["drafted"])
    assert watching.begun == 2 and drafted[0] == drafted[1] == drafted[2] == drafted[3] > 0 == drafted[4] == drafted[5]


def test_the_largest_budget_that_is_named_is_accepted(reader: Reader) -> None:
    largest = reader.longest_selection(QUESTION, 5)
    answer = reader.ask(DOCUMENT, QUESTION, budget_tokens=largest, max_new_tokens=5, selector="head")
    assert answer.usage["prompt_tokens"] + 5 <= WINDOW
    with pytest.raises(DoesNotFit):
        reader.ask(DOCUMENT, QUESTION, budget_tokens=largest + 1, max_new_tokens=5, selector="head")


def test_a_question_longer_than_the_window_is_refused_with_both_numbers(reader: Reader) -> None:
    question = "Where is the letter? " * 400
    with pytest.raises(DoesNotFit, match=f"{reader._frame.tokens + counted(reader, question)} tokens.*{WINDOW}"):
        reader.select(DOCUMENT, question)


@pytest.mark.parametrize("text", ["", " \r\n\t", "\u2003"])
def test_empty_documents_and_questions_are_named(text: str, reader: Reader) -> None:
    with pytest.raises(EmptyInput, match="document 'memo' has no text"):
        reader.ask([DOCUMENT, Document.from_text(text, id="memo")], QUESTION, budget_tokens=100)
    with pytest.raises(EmptyInput, match="question is empty"):
        reader.ask(DOCUMENT, text, budget_tokens=100)


@pytest.mark.parametrize("wrong", [[], "report.pdf", [DOCUMENT, "x"], None, 7])
def test_what_is_no_document_is_refused(wrong: Any, reader: Reader) -> None:
    with pytest.raises(BadOption, match="longctx.read makes them"):
        reader.compile(wrong)


def test_what_is_no_document_is_named_by_its_type(reader: Reader) -> None:
    class Document:
        """As other libraries have one."""

    for wrong, said in (
        ("report.pdf", "not str. .*Document.from_text of a string"),
        ([], "not a list of nothing"),
        ([DOCUMENT, 7, "x"], "not a list of int, longctx.types.Document, str"),
        (Document(), f"not {__name__}.Document"),
    ):
        with pytest.raises(BadOption, match=said):
            reader.compile(wrong)  # type: ignore[arg-type]


def test_two_documents_of_one_id_are_refused(reader: Reader) -> None:
    """Spans and citations name documents by id: with two of one name they would point into the wrong text."""
    with pytest.raises(BadOption, match=r"same id: 'text'\. .*from_text\(text, id="):
        reader.compile([Document.from_text("one"), Document.from_text("two")])


def test_dense_by_name_without_an_encoder_says_how_to_have_one(reader: Reader) -> None:
    with pytest.raises(BadOption, match="encoder=None: make it with encoder='auto'"):
        reader.select(DOCUMENT, QUESTION, budget_tokens=100, selector="dense")


def test_a_window_too_small_for_a_segment_says_how_large_segments_may_be() -> None:
    small = reader_of(window=256, segment_tokens=250)
    with pytest.raises(DoesNotFit, match=r"segment_tokens=\d+ or less"):
        small.select(DOCUMENT, QUESTION, budget_tokens=20, selector="infiniretri")
    with pytest.raises(BadOption, match="segment_tokens=0"):
        reader_of(segment_tokens=0)
