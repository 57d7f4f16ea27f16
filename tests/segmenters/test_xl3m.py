"""XL3M's signals against double-precision references taken from fresh forward passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch

from longctx import Document, Reader
from longctx.segmenters.selectors.xl3m import XL3M
from longctx.types import Inquiry, Reading, Unit

QUESTION = "Where is the kettle of Tobin kept?"


@pytest.fixture(scope="module")
def book() -> Any:
    model = tiny.model("qwen2", num_hidden_layers=2)
    reader = Reader(model, tiny.tokenizer("system"), encoder=None, calibration=None, segment_tokens=64)
    text = " ".join(f"The street {i} is in the winter report of Tobin number {i * 37}." for i in range(24))
    return reader.compile(Document.from_text(text))


def laws_of(book: Any, inquiry: Inquiry, segment: int | None) -> np.ndarray:
    """Natural-log laws of every position after [prefix + segment + question], in double precision."""
    own = [] if segment is None else book.segment_ids(segment).tolist()
    ids = torch.tensor([[*book.probe.prefix, *own, *inquiry.ids]])
    with torch.inference_mode():
        logits = book.probe.model(ids).logits[0].double()
    return logits.log_softmax(-1).numpy()


def expand(book: Any, per_segment: list[float]) -> np.ndarray:
    return np.concatenate(
        [np.full(last - first, value) for value, (first, last) in zip(per_segment, book.segments, strict=True)]
    )


def test_the_four_signals_are_what_their_formulas_say(book: Any) -> None:
    inquiry = book.probe.inquiry(QUESTION, next_token=True)
    laws = [laws_of(book, inquiry, s) for s in range(len(book.segments))]
    assert len(laws) >= 5
    p = [np.exp(law[-1]) for law in laws]
    base, mean = laws_of(book, inquiry, None)[-1], np.log(np.mean(p, axis=0))
    first, last = inquiry.question
    question = inquiry.ids[first:last]
    expected = {
        "entropy": [float((q * law[-1]).sum()) for q, law in zip(p, laws, strict=True)],
        "gain": [float((q * (law[-1] - base)).sum()) for q, law in zip(p, laws, strict=True)],
        "contrast": [float((q * (law[-1] - mean)).sum()) for q, law in zip(p, laws, strict=True)],
        "question_likelihood": [
            float(
                np.mean([law[len(law) - len(inquiry.ids) + first - 1 + t, question[t]] for t in range(len(question))])
            )
            for law in laws
        ],
    }
    tolerance = {"contrast": 2e-2}  # its laws wait in half precision
    for signal, values in expected.items():
        found = XL3M(signal=signal).score(QUESTION, book, 100).values  # type: ignore[arg-type]
        assert np.ptp(values) > 0.02, f"{signal} does not tell the segments apart: the comparison says little"
        np.testing.assert_allclose(found, expand(book, values), atol=tolerance.get(signal, 2e-4), err_msg=signal)


class Laws:
    """A corpus whose segments answer with given laws: what a refusal and knowledge by heart look like."""

    def __init__(self, laws: list[list[float]], base: list[float]) -> None:
        self.laws = [np.log(np.maximum(np.array(law, dtype=np.float32), 1e-30)) for law in laws]
        self.base = np.log(np.array(base, dtype=np.float32))
        self.units = [Unit(i, 0, i, i + 1, i, i + 1) for i in range(len(laws))]
        self.segments = [(i, i + 1) for i in range(len(laws))]
        self.probe = self

    def spent(self) -> int:
        return 0

    def inquiry(self, question: str, **_: Any) -> Inquiry:
        return Inquiry((1,), (0, 1))

    def _reading(self, law: np.ndarray) -> Reading:
        return Reading(np.zeros((0, 1), np.float32), np.zeros(0, np.float32), law)

    def ask(self, segments: Any, inquiry: Inquiry) -> Any:
        return [(i, self._reading(self.laws[i])) for i in reversed(segments)]

    def null(self, inquiry: Inquiry) -> Reading:
        return self._reading(self.base)


REFUSAL = [0.01, 0.01, 0.01, 0.97]  # the last token begins "The text does not say"
FOUND = [0.85, 0.05, 0.05, 0.05]
UNSURE = [0.1, 0.1, 0.1, 0.7]


def best(signal: Any, corpus: Any) -> int:
    return int(XL3M(signal=signal).score("q", corpus, 9).values.argmax())


def test_a_certain_refusal_fools_entropy_and_not_gain_nor_contrast() -> None:
    corpus = Laws([REFUSAL, REFUSAL, FOUND, REFUSAL], base=UNSURE)
    assert best("entropy", corpus) == 0
    assert best("gain", corpus) == best("contrast", corpus) == 2


def test_what_the_model_knows_by_heart_fools_entropy_and_not_gain() -> None:
    by_heart = [0.05, 0.93, 0.01, 0.01]
    corpus = Laws([by_heart, FOUND, by_heart], base=[0.06, 0.92, 0.01, 0.01])
    assert best("entropy", corpus) == 0 and best("gain", corpus) == best("contrast", corpus) == 1


def test_tokens_that_the_model_rules_out_do_not_spoil_the_sum() -> None:
    corpus: Any = Laws([[1.0, 0.0, 0.0, 0.0], FOUND], base=UNSURE)
    corpus.laws[0] = np.array([0.0, -np.inf, -np.inf, -np.inf], dtype=np.float32)
    for signal in ("entropy", "gain", "contrast"):
        assert np.isfinite(XL3M(signal=signal).score("q", corpus, 9).values).all()  # type: ignore[arg-type]


def test_a_text_that_makes_the_question_no_likelier_is_not_relevant() -> None:
    class Likelihoods(Laws):
        def ask(self, segments: Any, inquiry: Inquiry) -> Any:
            return [(i, Reading(np.zeros((0, 1), np.float32), self.laws[i])) for i in segments]

        def null(self, inquiry: Inquiry) -> Reading:
            return Reading(np.zeros((0, 1), np.float32), self.base)

    better: Any = Likelihoods([[0.1, 0.1], [0.3, 0.2]], base=[0.2, 0.2])
    worse: Any = Likelihoods([[0.1, 0.1], [0.1, 0.3]], base=[0.2, 0.2])
    assert XL3M().score("q", better, 9).relevant and not XL3M().score("q", worse, 9).relevant
