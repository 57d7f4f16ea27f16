"""The format a processor is quickest in."""

from __future__ import annotations

import pytest
import torch

from longctx.backend import arithmetic


@pytest.mark.parametrize(
    ("dtype", "half", "wide", "expected"),
    [
        (torch.bfloat16, 2.0, 1.0, torch.float32),
        (torch.float16, 2.0, 1.0, torch.float32),
        (torch.bfloat16, 1.0, 4.0, torch.bfloat16),
        (torch.bfloat16, 1.1, 1.0, torch.bfloat16),  # too little to convert weights for
        (torch.float32, 1.0, 2.0, torch.float32),
        (torch.float64, 1.0, 2.0, torch.float64),
    ],
)
def test_arithmetic_is_what_this_processor_is_quickest_at(
    dtype: torch.dtype, half: float, wide: float, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "_seconds", lambda tried, threads: (wide, half))
    assert arithmetic.arithmetic(dtype, torch.device("cpu")) == expected
    assert arithmetic.arithmetic(dtype, torch.device("meta")) == dtype


def test_what_a_product_takes_is_measured_and_kept() -> None:
    threads = torch.get_num_threads()
    taken = arithmetic._seconds(torch.bfloat16, threads)
    assert all(0 < seconds < 10 for seconds in taken) and arithmetic._seconds(torch.bfloat16, threads) == taken
