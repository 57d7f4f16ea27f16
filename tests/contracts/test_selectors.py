"""What every selector promises, whatever it scores by: one number per unit, the same each time, options by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from longctx import Document, Reader, plugins
from longctx.errors import BadOption
from longctx.segmenters.selectors._neighbours import spread, standard
from longctx.types import Scores, Unit

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = plugins.names("selectors")
VARIANTS = [
    *NAMES,
    "dense:pieces=8,signature=0.3",
    *("xl3m:signal=entropy", "xl3m:signal=gain", "xl3m:signal=contrast", "infiniretri:compat=paper,window=96,topk=20"),
]
QUESTION = "Where is the kettle of Tobin kept?"
WORDS = "street river winter letter room report quiet bridge lamp market".split()


def story(seed: int, sentences: int = 14) -> str:
    rng = np.random.default_rng(seed)
    return " ".join("The " + " ".join(rng.choice(WORDS, 7)) + "." for _ in range(sentences))


DOCUMENTS = [
    Document.from_text(story(1) + " Tobin keeps the kettle in room 7. " + story(2), id="a"),
    Document.from_text(story(3), id="b"),
]


class Encoder:
    """Sentence vectors without a model: how often each letter stands in a text."""

    why_unavailable = ""

    def __call__(self, temperature: float = 1.0) -> Encoder:
        return self

    def encode(self, texts: Any, *, progress: Any = None) -> np.ndarray:
        counts = np.array([[t.lower().count(chr(97 + i)) for i in range(26)] for t in texts], dtype=np.float32) + 0.01
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


MODEL = tiny.model("qwen2", num_hidden_layers=3)


def book_of(documents: Any = None, encoder: Any = True, **options: Any) -> Any:
    settings: dict[str, Any] = {"calibration": None, "segment_tokens": 96} | options
    reader = Reader(MODEL, tiny.tokenizer("system"), encoder=None, **settings)
    if encoder:
        reader._compiler._encoders = Encoder()  # type: ignore[assignment]
    return reader.compile(DOCUMENTS if documents is None else documents)


def scored(name: str, book: Any, question: str = QUESTION, budget: int = 200) -> Scores:
    scores: Scores = plugins.load("selectors", name).score(question, book, budget)
    return scores


@pytest.mark.parametrize("name", VARIANTS)
def test_every_unit_gets_one_number_that_is_finite_or_minus_infinity_and_the_same_again(name: str) -> None:
    book = book_of()
    scores = scored(name, book)
    assert scores.values.shape == (len(book.units),) and scores.values.dtype == np.float32
    assert (np.isfinite(scores.values) | (scores.values == -np.inf)).all() and (scores.values > -np.inf).any()
    assert isinstance(scores.relevant, bool) and scores.tokens_read >= 0
    for other in (book, book_of(), book_of(segment_memory_bytes=0)):
        again = scored(name, other)
        np.testing.assert_allclose(again.values, scores.values, atol=1e-4)
        assert again.relevant == scores.relevant and again.warnings == scores.warnings


@pytest.mark.parametrize("name", VARIANTS)
def test_one_unit_and_equal_units_are_scored_without_a_warning(name: str) -> None:
    """Deviations of zero and totals of zero: numpy's warnings are errors here."""
    for text in ("Tobin.", "x", "The quiet river. " * 60, "\u200b", "\n\n\n .", "7" * 500):
        book = book_of(Document.from_text(text))
        values = scored(name, book).values
        assert values.shape == (len(book.units),) and not np.isnan(values).any()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_question_of_strange_characters_is_scored(name: str) -> None:
    for question in ("?", "\ud83d", "你好吗", "\x00", tiny.START, "the of and"):
        assert not np.isnan(scored(name, book_of(), question).values).any()


@pytest.mark.parametrize("name", [name for name in VARIANTS if not plugins.load("selectors", name).baseline])
def test_what_was_read_is_what_was_spent(name: str) -> None:
    book = book_of(segment_memory_bytes=0)
    before = book.spent()
    scores = scored(name, book)
    assert book.spent() - before == (0 if "paper" in name else scores.tokens_read)
    reads = name.split(":")[0] in ("auto", "infiniretri", "longheads", "xl3m")
    assert (scores.tokens_read > 0) is reads


@pytest.mark.parametrize("name", [n for n in NAMES if "neighbours" in plugins.options("selectors", n)])
def test_neighbours_share_their_scores_within_a_document_and_never_across(name: str) -> None:
    book = book_of()
    alone = scored(f"{name}:neighbours=0", book, budget=10_000).values
    together = scored(f"{name}:neighbours=0.25", book, budget=10_000).values
    expected = alone.copy()
    for i, unit in enumerate(book.units):
        for j in (i - 1, i + 1):
            if 0 <= j < len(book.units) and book.units[j].document == unit.document:
                expected[i] += 0.25 * alone[j]
    assert len({unit.document for unit in book.units}) == 2
    np.testing.assert_allclose(together, expected, atol=1e-4)


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(-5, 5, width=32)), max_size=15), st.floats(0, 1))
def test_spreading_is_the_obvious_sum(given_units: list[tuple[int, float]], share: float) -> None:
    given_units.sort(key=lambda pair: pair[0])
    units = [Unit(i, document, i, i + 1, i, i + 1) for i, (document, _) in enumerate(given_units)]
    values = np.array([value for _, value in given_units], dtype=np.float32)
    before = values.copy()
    out = spread(values, units, share)
    for i, unit in enumerate(units):
        near = [values[j] for j in (i - 1, i + 1) if 0 <= j < len(units) and units[j].document == unit.document]
        assert out[i] == pytest.approx(values[i] + share * sum(near), abs=1e-4)
    assert np.array_equal(values, before), "the input was changed"


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
def test_standard_scores_have_mean_zero_and_deviation_one_or_are_all_zero(values: list[float]) -> None:
    out = standard(np.array(values, dtype=np.float32))
    assert np.isfinite(out).all()
    if np.ptp(values) > 1e-2 * (1 + np.abs(values).max()):
        assert out.mean() == pytest.approx(0, abs=1e-3) and out.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_options_are_fields_and_others_are_refused_by_name(name: str) -> None:
    cls = plugins.plugin("selectors", name)
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert isinstance(cls.baseline, bool)
    known = plugins.options("selectors", name)
    with pytest.raises(BadOption, match=f"'{name}' has no option 'nonsense'.*{', '.join(known) or 'none'}"):
        plugins.load("selectors", f"{name}:nonsense=1")
    for option, (kind, default) in known.items():
        assert plugins.load("selectors", f"{name}:{option}={default}") == cls()
        if kind in ("int", "float", "bool"):
            with pytest.raises(BadOption, match=f"{option}='many'"):
                plugins.load("selectors", f"{name}:{option}=many")


BAD = (
    *("dense:temperature=0", "dense:temperature=-1", "dense:pieces=-1", "dense:signature=-0.1", "dense:signature=2"),
    *("infiniretri:topk=0", "infiniretri:phrase=0", "xl3m:signal=luck"),
)


@pytest.mark.parametrize("spec", BAD)
def test_values_that_can_never_work_are_refused(spec: str) -> None:
    name, _, rest = spec.partition(":")
    with pytest.raises(BadOption, match=f"'{name}': .*{rest.partition('=')[0]}"):
        plugins.load("selectors", spec)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dense"])
def test_without_a_sentence_encoder_all_but_dense_work(name: str) -> None:
    scores = scored(name, book_of(encoder=False))
    assert np.isfinite(scores.values).any()
    told = [warning for warning in scores.warnings if "without embeddings" in warning]
    assert bool(told) is (name == "auto"), "a method that does less than usual says so, and only that one"


def test_dense_without_a_sentence_encoder_says_how_to_have_one() -> None:
    for spec in ("dense", "dense:bm25=1"):
        with pytest.raises(BadOption, match="encoder=None: make it with"):
            scored(spec, book_of(encoder=False))


@pytest.mark.parametrize("name", ["auto", "infiniretri", "xl3m", "xl3m:signal=contrast"])
def test_an_interrupted_reading_leaves_nothing_wrong_behind(name: str) -> None:
    book = book_of(segment_memory_bytes=0)
    expected = scored(name, book_of()).values

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "reading" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), book.reporting(interrupt):
        scored(name, book)
    np.testing.assert_allclose(scored(name, book).values, expected, atol=1e-4)
    assert MODEL.config._attn_implementation == "eager"
