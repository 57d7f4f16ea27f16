"""What callers give by mistake, or in another form than usual: a typed error with the remedy, or simply taken."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from readers import NEEDLE, QUESTION, WINDOW, reader_of, story

import longctx
from longctx import Document, plugins
from longctx.backend.model import from_pretrained
from longctx.errors import BadOption, CacheError, DoesNotFit, LongctxError, UsageError
from longctx.types import Scores

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.tensor([[9, 12, 401, 33, 8, 64, 2] * 6])
TOKENIZER = tiny.tokenizer()
SHORT = Document.from_text(story(4, 2), id="short")
LONG = Document.from_text(story(200, 100), id="long")


def test_a_budget_beyond_the_window_serves_a_text_that_fits() -> None:
    reader = reader_of()
    found = reader.ask(SHORT, QUESTION, budget_tokens=10 * WINDOW, max_new_tokens=4, selector="auto")
    assert found.selection.dropped_tokens == found.selection.tokens_read == 0 and NEEDLE in found.selection.text
    assert reader.select(SHORT, QUESTION, budget_tokens=10 * WINDOW).spans == found.selection.spans
    with pytest.raises(DoesNotFit, match=f"budget_tokens={10 * WINDOW} leaves no room"):
        reader.ask(LONG, QUESTION, budget_tokens=10 * WINDOW, max_new_tokens=4)


def test_a_budget_beyond_the_window_goes_with_a_policy_that_bounds_distances() -> None:
    reader = reader_of()
    given: dict[str, Any] = {"budget_tokens": WINDOW + 100, "selector": "bm25", "max_new_tokens": 4}
    assert reader.ask(LONG, QUESTION, kv="lm_infinite:budget=64", **given).selection.tokens > WINDOW
    with pytest.raises(DoesNotFit, match="leaves no room"):
        reader.ask(LONG, QUESTION, kv="quest:budget=64", **given)


def test_an_error_says_what_was_done_before_it() -> None:
    reader = reader_of()
    with pytest.raises(DoesNotFit) as caught:
        reader.ask(LONG, QUESTION, budget_tokens=1, selector="bm25", max_new_tokens=4)
    assert [step.name for step in caught.value.trace] == ["compile"] and caught.value.trace[0].facts["units"] > 1

    @dataclass(frozen=True)
    class Failing:
        needs = 0

        def begin(self, source: Any) -> Any:
            raise ValueError("broken")

    with pytest.raises(LongctxError) as failed:
        reader.ask(LONG, QUESTION, budget_tokens=100, selector="bm25", max_new_tokens=4, drafters=[Failing()])
    assert [step.name for step in failed.value.trace] == ["compile", "select", "cut"]
    assert LongctxError("alone").trace == ()


def test_one_drafter_is_taken_as_a_list_of_one_and_in_its_place() -> None:
    model, ngram = tiny.model(), plugins.load("drafters", "ngram")
    expected = model.generate(IDS, do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=1)
    for drafters in (ngram, [ngram], "ngram"):
        out = longctx.generate(model, TOKENIZER, IDS, drafters, None, max_new_tokens=12, eos_token_id=None)
        assert torch.equal(out.sequences, expected) and set(out.stats.drafted_by_source) == {"ngram"}


@pytest.mark.parametrize(("policy", "promise"), [("full", "exact"), ("quest:budget=32,page=4", "approximate")])
def test_generate_promises_no_more_than_a_bounded_cache_can_hold(policy: str, promise: str) -> None:
    model = tiny.model()
    ids = torch.cat([IDS] * 4, 1)
    context = longctx.kv.compress(model, ids[:, :150], policy)
    with context.attached(model) as cache:
        out = longctx.generate(model, TOKENIZER, ids, past_key_values=cache, max_new_tokens=4)
    assert out.stats.guarantee == promise


@pytest.mark.parametrize(
    ("ids", "options", "says"),
    [
        ([5, 100000], {}, "5 to 100000.*embeddings for 0 to 479"),
        ([5, -1], {}, "-1 to 5.*another tokenizer"),
        ([5], {"do_sample": True}, "do_sample= cannot be had: a temperature="),
        ([5], {"stopping_criteria": []}, "stopping_criteria= cannot be had: stop="),
        ([5], {"custom_generate": print}, "custom_generate= cannot be had"),
        ([5], {"assistant_model": tiny}, "assistant_model= cannot be had: drafts"),
        ([5], {"tokenizer": None}, "tokenizer=None must be a tokenizer"),
    ],
)
def test_ids_and_options_that_cannot_be_are_refused(ids: list[int], options: dict[str, Any], says: str) -> None:
    given: dict[str, Any] = {"model": tiny.model(), "tokenizer": TOKENIZER, "input_ids": ids} | options
    with pytest.raises(BadOption, match=says):
        longctx.generate(**given)
    if not options:
        with pytest.raises(BadOption, match=says):
            longctx.kv.compress(given["model"], ids, "full")


@pytest.mark.parametrize("text", [b"memo", None, 3])
def test_a_text_that_is_none_is_refused_where_the_document_is_made(text: Any) -> None:
    with pytest.raises(BadOption, match="a document is a string, not "):
        Document.from_text(text)


@pytest.mark.parametrize("path", [None, 3, ""])
def test_a_path_that_is_none_is_refused_before_any_work(path: Any) -> None:
    reader = reader_of()
    book = reader.compile(SHORT)
    context = longctx.kv.compress(reader.model, IDS, "full")
    calls: list[Any] = [book.save, reader.load, context.save, lambda path: longctx.kv.load(path, reader.model)]
    if path is not None:
        calls.append(lambda path: reader.compile(SHORT, path=path))
    for call in calls:
        with pytest.raises(BadOption, match="must be a path"):
            call(path)


def test_an_empty_manifest_of_a_context_is_named(tmp_path: Path) -> None:
    model = tiny.model()
    longctx.kv.compress(model, IDS, "full").save(tmp_path / "kept")
    (tmp_path / "kept" / "context.json").write_bytes(b"")
    with pytest.raises(longctx.errors.ArtifactError, match=r"context\.json"):
        longctx.kv.load(tmp_path / "kept", model)


@pytest.mark.parametrize("name", ["", None, 5])
def test_what_names_no_model_is_no_hub_id(name: Any) -> None:
    with pytest.raises(UsageError, match="names no model"):
        from_pretrained(name)


def test_wide_floats_can_be_named(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    assert from_pretrained(tmp_path, "float64").model.dtype == torch.float64
    assert longctx.Reader.from_pretrained(tmp_path, "float64", "cpu").model.dtype == torch.float64


@dataclass(frozen=True)
class Giving:
    """A selector of somebody's own that returns these scores, repeated over the units."""

    scores: tuple[float, ...]
    count: int = 0
    baseline = False

    def score(self, question: str, book: Any, budget_tokens: int) -> Scores:
        return Scores(np.resize(np.array(self.scores, dtype=np.float32), self.count or len(book.units)))


def test_scores_of_a_selector_of_ones_own_are_looked_at() -> None:
    reader = reader_of()
    with pytest.raises(UsageError, match=r"Giving returned scores \(3,\) where \d+ units need one each"):
        reader.select(LONG, QUESTION, budget_tokens=200, selector=Giving((1.0,), count=3))
    none = reader.ask(LONG, QUESTION, budget_tokens=200, selector=Giving((-np.inf,)), max_new_tokens=4)
    assert none.selection.spans == () and not none.selection.relevant
    assert any("Giving keeps nothing" in warning for warning in none.warnings)
    first = reader.ask(LONG, QUESTION, budget_tokens=200, selector=Giving((np.inf, 1.0)), max_new_tokens=4)
    assert first.selection.spans
    json.dumps(first.as_dict(), allow_nan=False)


def test_a_document_of_another_tokenizer_is_not_copied_from() -> None:
    reader = reader_of(template="no_system")
    book = reader.compile(SHORT)
    drawn: dict[str, Any] = {"document": book, "max_new_tokens": 4}
    assert longctx.generate(reader.model, reader.tokenizer, IDS, **drawn).sequences.shape[1] == IDS.shape[1] + 4
    with pytest.raises(CacheError, match="'short' was compiled with another tokenizer"):
        longctx.generate(reader.model, Swapped(reader.tokenizer), IDS, **drawn)


class Swapped:
    """The same tokenizer, whose ids are all one higher."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        found = self._tokenizer(*args, **options)
        found["input_ids"] = [[token + 1 for token in ids] for ids in found["input_ids"]]
        return found
