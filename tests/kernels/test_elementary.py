"""Exponentials of vectors and logarithms by themselves: those of the library, wherever they are defined."""

from __future__ import annotations

import pytest
import torch
from machines import needed, threads

from longctx.kernels import machine
from longctx.kernels.elementary import exp, log, power
from longctx.kernels.loops import Loops

NONE, ALL = float("nan"), float("inf")


def through(x: torch.Tensor, which: str) -> torch.Tensor:
    """Every number of ``x`` by a function that is nothing else."""
    code, made = Loops(machine.lanes()), torch.empty_like(x)
    with code.function("void @run(ptr %given)"):
        told = code.told(("x", "out", "COUNT"))
        with code.loop(0, told["COUNT"], 1 if which == "log" else code.lanes) as at:
            if which != "log":
                found = {"exp": exp, "power": power}[which](code, code.wide("float", told["x"], at.index))
                code.store(code.vector, found, told["out"], at.index, "float")
            else:
                found = log(code, code.load("float", told["x"], at.index), code.number(-7.0))
                code.store("float", found, told["out"], at.index)
    with threads(1):
        machine.run(machine.compiled(code.text()), (x.data_ptr(), made.data_ptr(), len(x)))
    return made


@needed
def test_exponentials_are_right_to_seven_digits() -> None:
    x = torch.cat((torch.linspace(-87, 0, 2**16), -torch.logspace(-45, 1.9, 2**12)))
    torch.testing.assert_close(through(x, "exp").double(), x.double().exp(), rtol=2e-7, atol=0)


@needed
def test_what_is_far_below_has_none_and_what_is_no_number_stays_none() -> None:
    x = torch.tensor([-87.1, -200.0, -3.4e38, -0.0, 0.0, NONE, -NONE, -ALL] * 4)
    expected = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, NONE, NONE, NONE] * 4)
    torch.testing.assert_close(through(x, "exp"), expected, rtol=0, atol=0, equal_nan=True)


@needed
def test_powers_of_two_are_right_to_five_digits_and_of_nothing_exactly() -> None:
    x = torch.cat((torch.linspace(-125, 0, 2**16), -torch.logspace(-45, 2, 2**12)))
    torch.testing.assert_close(through(x, "power").double(), torch.exp2(x.double()), rtol=5e-6, atol=0)
    edges = torch.tensor([-126.0, -200.0, -3.4e38, -0.0, 0.0, NONE, -NONE, -ALL] * 4)
    expected = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, NONE, NONE, 0.0] * 4)
    torch.testing.assert_close(through(edges, "power"), expected, rtol=0, atol=0, equal_nan=True)


@needed
@pytest.mark.parametrize("about", [1.0, 2**0.5, 1e-37, 1e37])
def test_logarithms_are_right_to_seven_digits(about: float) -> None:
    x = about * torch.linspace(0.4, 3, 2**12)
    torch.testing.assert_close(through(x, "log").double(), x.double().log(), rtol=2e-7, atol=1e-7)


@needed
def test_logarithms_of_nothing_and_of_too_much() -> None:
    found = through(torch.tensor([0.0, ALL, NONE]), "log")
    torch.testing.assert_close(found, torch.tensor([-7.0, ALL, NONE]), equal_nan=True)
