"""What callers give: the right types pass in all their forms, everything else is BadOption with the value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from longctx import values
from longctx.errors import BadOption


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_are_those_of_python_and_of_numpy(value: Any) -> None:
    found = values.whole("budget_tokens", value, 3)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize("value", [None, "4k", "3", 3.0, np.float32(3), True, [3]])
def test_what_is_no_whole_number_is_refused_with_its_value(value: Any) -> None:
    with pytest.raises(BadOption) as caught:
        values.whole("budget_tokens", value, 1)
    assert str(caught.value) == f"budget_tokens={value!r} must be a whole number of at least 1."


def test_the_least_is_a_bound_only_where_there_is_one() -> None:
    assert values.whole("seed", -7) == -7
    with pytest.raises(BadOption, match=r"seed='x' must be a whole number\.$"):
        values.whole("seed", "x")
    with pytest.raises(BadOption, match="n=2 must be a whole number of at least 3"):
        values.whole("n", 2, 3)


@pytest.mark.parametrize("value", [0, 2, 0.5, np.float32(0.5)])
def test_amounts_are_finite_numbers_of_zero_or_more(value: Any) -> None:
    found = values.amount("temperature", value)
    assert found == value and type(found) is float


@pytest.mark.parametrize("value", [None, "0.5", True, -0.5, math.nan, math.inf, 1j])
def test_what_is_no_amount_is_refused_with_its_value(value: Any) -> None:
    with pytest.raises(BadOption, match="must be a finite number of 0 or more") as caught:
        values.amount("temperature", value)
    assert f"temperature={value!r} " in str(caught.value)


def test_texts_are_texts() -> None:
    assert values.text("question", " ") == " " and values.texts("stop", ["a", "b"]) == ("a", "b")
    assert values.texts("stop", ()) == () and values.texts("stop", {"a"}) == ("a",)
    assert values.texts("stop", np.array(["a", "b"])) == ("a", "b")
    for wrong in (None, 7, b"a"):
        with pytest.raises(BadOption, match="question=.*must be a string"):
            values.text("question", wrong)
    for wrong in (None, 7, "a", b"a", [""], [None], {"a", ""}):
        with pytest.raises(BadOption, match="stop=.*list of strings, none of them empty"):
            values.texts("stop", wrong)


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(BadOption) as caught:
        values.whole("n", "x" * 10_000)
    assert len(str(caught.value)) < 150
