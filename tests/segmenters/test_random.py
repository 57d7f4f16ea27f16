"""A draw that follows from seed and question and from nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np

from longctx.segmenters.selectors.random import Random


def test_seed_and_question_make_the_draw(unread: Any) -> None:
    def drawn(seed: int, question: str) -> np.ndarray:
        return Random(seed=seed).score(question, unread, 1).values

    first = drawn(0, "Who?")
    assert np.array_equal(first, drawn(0, "Who?"))
    for other in (drawn(1, "Who?"), drawn(0, "What?"), drawn(0, "Who? \ud83d")):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.4
    assert len(set(first.tolist())) == len(first) and 0 <= first.min() and first.max() < 1


def test_no_place_in_the_text_is_preferred(unread: Any) -> None:
    draws = np.stack([Random().score(f"question {i}", unread, 1).values for i in range(300)])
    assert np.abs(draws.mean(0) - 0.5).max() < 0.1
