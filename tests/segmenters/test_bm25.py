"""BM25 as a selector: shared rare words win, and no shared word means nothing relevant."""

from __future__ import annotations

from typing import Any

import pytest
from needles import NEEDLES

from longctx.segmenters.selectors.bm25 import BM25


@pytest.mark.parametrize("question", NEEDLES)
def test_a_planted_needle_is_the_best_unit(question: str, unread: Any) -> None:
    scores = BM25().score(question, unread, 200)
    assert NEEDLES[question] in unread.text(int(scores.values.argmax()))
    assert scores.relevant and scores.tokens_read == 0


def test_no_shared_word_means_nothing_relevant(unread: Any) -> None:
    scores = BM25(neighbours=0.5).score("zebra xylophone of the", unread, 200)
    assert not scores.relevant and not scores.values.any()
