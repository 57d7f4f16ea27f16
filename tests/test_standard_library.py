"""The texts of Python: one order, and documentation only once."""

from __future__ import annotations

import ast
from itertools import islice

from longctx.pipelines import standard_library


def test_the_texts_come_in_one_order_and_begin_with_the_reference() -> None:
    first = list(islice(standard_library.texts(), 4))
    assert first == list(islice(standard_library.texts(), 4)) and len(set(first)) == 4
    assert "nonlocal" in first[0]


def test_documentation_strings_are_taken_out_of_the_sources() -> None:
    source = 'def f():\n    """What it does."""\n    return 1  # done\n'
    apart = standard_library._apart(source, ast.parse(source))
    assert apart == ("What it does.", "def f():\n    return 1  # done\n")
