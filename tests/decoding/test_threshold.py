"""The threshold controller keeps what is likely enough, by what drafts turned out to be worth."""

from __future__ import annotations

import pytest

from longctx import plugins
from longctx.decoding.tree import merge
from longctx.drafts import Draft
from longctx.errors import BadOption


def test_paths_end_where_they_become_unlikely() -> None:
    control = plugins.load("controllers", "threshold:least=0.5").begin()
    tree = merge([Draft.chain([1, 2, 3, 4], [0.9, 0.7, 0.45, 0.4])], 9, 9)
    assert len(control.cut(tree, 0.0)) == 2


def test_it_learns_that_a_claim_is_too_high() -> None:
    control = plugins.load("controllers", "threshold:least=0.5").begin()
    tree = merge([Draft.chain([1, 2], [0.9, 0.7])], 9, 9)
    for _ in range(40):
        control.plan(9, 0)
        control.cut(tree, 0.0)
        control.feedback([5], 3, 1.0, 0)
    assert len(control.cut(tree, 0.0)) == 0
    with pytest.raises(BadOption, match="least=2"):
        plugins.load("controllers", "threshold:least=2")
