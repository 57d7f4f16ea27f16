"""The first tokens and nothing else: what truncation keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from longctx.segmenters.selectors.head import Head


@pytest.mark.parametrize("budget", [100, 333, 10**6])
def test_the_text_is_kept_from_its_beginning_up_to_the_first_unit_that_does_not_fit(budget: int, unread: Any) -> None:
    values = Head().score("anything", unread, budget).values
    kept = np.flatnonzero(values > -np.inf)
    assert kept.tolist() == list(range(len(kept))) and (np.diff(values[kept]) < 0).all()
    sizes = [unit.tokens for unit in unread.units]
    assert sum(sizes[: len(kept)]) <= budget
    assert len(kept) == len(sizes) or sum(sizes[: len(kept) + 1]) > budget
    assert np.array_equal(values, Head().score("something else", unread, budget).values)
