"""LongHeads as a selector: a planted fact comes first, from its summary alone, for the price of the question."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch

from longctx import Document, Reader
from longctx.segmenters.selectors._attention import fuse
from longctx.segmenters.selectors.longheads import LongHeads

pytestmark = pytest.mark.usefixtures("one_thread")
QUESTION = "Where is the kettle of Tobin kept?"
TEXT = "".join(f"The street of report {n} was quiet that winter, and the letter came late.\n\n" for n in range(30))


class Corpus:
    """Shares of attention as told."""

    units = tuple(range(4))
    calibration = None

    def __init__(self, share: Any) -> None:
        self.share, self.asked = np.array(share, dtype=np.float32), []
        self.probe = self

    def middle(self) -> tuple[tuple[int, int], ...]:
        return ((1, 0), (1, 1))

    def spent(self) -> int:
        return 7 * len(self.asked)

    def glance(self, question: str, by: str) -> np.ndarray:
        self.asked.append((question, by))
        return self.share


def test_heads_count_alike_and_the_question_is_all_that_is_paid_for() -> None:
    corpus: Any = Corpus([[0.1, 0.3, 0.0, 0.0], [0.0, 0.0, 0.01, 0.0]])
    scores = LongHeads(by="bounds").score(QUESTION, corpus, 100)
    np.testing.assert_allclose(scores.values, fuse(corpus.share))
    np.testing.assert_allclose(scores.values, [0.125, 0.375, 0.5, 0.0])
    assert corpus.asked == [(QUESTION, "bounds")] and scores.tokens_read == 7
    assert "not calibrated: all heads of layer 1" in scores.warnings[0]


def copying() -> Any:
    """A model of one layer whose keys and queries are the tokens' own embeddings, so that equal tokens attend.

    The rotation is made so slow that positions do not matter.
    """
    model: Any = tiny.model("llama", num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=64)
    model.model.rotary_emb.inv_freq.fill_(1e-9)
    model.model.rotary_emb.original_inv_freq.fill_(1e-9)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        attention.q_proj.weight.copy_(6.0 * torch.eye(64))
        attention.k_proj.weight.copy_(torch.eye(64))
    return model


def test_a_planted_needle_comes_first_and_a_later_question_costs_its_own_tokens() -> None:
    needle = "Kofi counts seven zebras.\n\n"
    at = TEXT.index("The street of report 17")
    document = Document.from_text(TEXT[:at] + needle + TEXT[at:])
    reader = Reader(copying(), tiny.tokenizer("system"), encoder=None, calibration=None, segment_tokens=128)
    book = reader.compile(document)
    scores = LongHeads().score("zebras", book, 100)
    assert "zebras" in book.text(int(scores.values.argmax()))
    assert len(book.units) > 10 and len(book.segments) > 3
    again = LongHeads().score("zebras", book, 100)
    assert again.tokens_read == len(book.probe.inquiry("zebras").ids) < 40
    np.testing.assert_array_equal(again.values, scores.values)


def test_a_first_question_reads_no_deeper_than_the_heads_look() -> None:
    reader = Reader(
        tiny.model("qwen2", num_hidden_layers=4),
        tiny.tokenizer("system"),
        encoder=None,
        calibration=None,
        segment_memory_bytes=0,
    )
    book = reader.compile(Document.from_text(TEXT))
    depths: list[int | None] = []
    read = book.probe.read
    book.probe.read = lambda segments, depth=None: depths.append(depth) or read(segments, depth)  # type: ignore[method-assign, assignment, misc, func-returns-value]
    first = LongHeads().score(QUESTION, book, 100)
    deepest = book.probe.middle()[0][0] + 1
    assert set(depths) == {deepest} and deepest < 4
    assert first.tokens_read == book.tokens + len(book.probe.inquiry(QUESTION).ids)
