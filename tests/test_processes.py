"""Functions in a process of their own: their answer, and what a process means that ends without one."""

from __future__ import annotations

import pytest

from longctx.errors import ProgramError
from longctx.pipelines import processes


def test_the_answer_comes_back_whatever_was_printed_before() -> None:
    assert processes.call("json", "loads", ['[1, "two"]']) == [1, "two"]


def test_memory_is_what_there_is_now_and_then_the_most_there_was() -> None:
    now = processes.memory(reset=True)
    if now is None:
        pytest.skip("the system does not tell")
    held = bytearray(b"1" * 60_000_000)
    assert len(held) == 60_000_000
    del held
    assert (processes.memory() or 0) - now > 50_000_000
    assert (processes.memory(reset=True) or 0) - now < 50_000_000


@pytest.mark.parametrize(
    ("module", "function", "given", "kind"),
    [("json", "loads", ["no JSON"], "exit 1"), ("signal", "raise_signal", [9], "signal 9")],
)
def test_a_process_without_an_answer_is_a_typed_error(
    module: str, function: str, given: list[object], kind: str
) -> None:
    with pytest.raises(ProgramError, match=kind) as caught:
        processes.call(module, function, given)
    assert caught.value.kind == kind and ("memory" in str(caught.value)) == (kind == "signal 9")
