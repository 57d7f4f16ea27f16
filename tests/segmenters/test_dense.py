"""The cosine of question and unit, or of a best piece; BM25 is added standardised, so that neither drowns the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from longctx.resources import Encoders
from longctx.segmenters.selectors._neighbours import standard
from longctx.segmenters.selectors.dense import Dense


class Corpus:
    """Similarities and word scores as given."""

    units = ()

    def __init__(self, cosine: list[float], words: list[float]) -> None:
        self.cosine, self.words = np.array(cosine, dtype=np.float32), np.array(words, dtype=np.float32)
        self.asked: list[tuple[float, int, float]] = []

    def similarity(self, question: str, temperature: float, piece_tokens: int, signature: float) -> np.ndarray:
        self.asked.append((temperature, piece_tokens, signature))
        return self.cosine

    def lexical(self, question: str) -> np.ndarray:
        return self.words


def test_the_cosine_alone_is_the_score_and_the_options_reach_the_encoder() -> None:
    corpus: Any = Corpus([0.1, 0.9, 0.3], [5.0, 0.0, 0.0])
    assert Dense(temperature=0.7).score("q", corpus, 9).values.tolist() == corpus.cosine.tolist()
    assert corpus.asked == [(0.7, 0, 0.1)]
    Dense(pieces=96, signature=0.25).score("q", corpus, 9)
    assert corpus.asked[1:] == [(1.0, 96, 0.25)]


def test_words_are_added_on_the_scale_of_the_cosine() -> None:
    corpus: Any = Corpus([0.1, 0.9, 0.3], [500.0, 0.0, 100.0])
    values = Dense(bm25=2.0).score("q", corpus, 9).values
    np.testing.assert_allclose(values, standard(corpus.cosine) + 2 * standard(corpus.words), atol=1e-6)
    flat: Any = Corpus([0.1, 0.9, 0.3], [4.0, 4.0, 4.0])
    assert Dense(bm25=2.0).score("q", flat, 9).values.argmax() == 1


@pytest.mark.skipif(bool(Encoders("auto").why_unavailable), reason="the sentence encoder is not installed")
def test_a_planted_needle_is_found_by_what_it_means(unread: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread.embeddings, "encoder", Encoders("auto"))
    monkeypatch.setattr(unread.embeddings, "_vectors", {})
    best = int(Dense().score("Who gave the lighthouse a new coat of paint?", unread, 200).values.argmax())
    assert "Ilse Renwick" in unread.text(best)
