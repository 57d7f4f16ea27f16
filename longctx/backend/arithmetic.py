"""The number format in which this processor multiplies fastest.

Owns the trial that decides for it. Knows no model and no layer.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from longctx.backend.kept import kept, taken
from longctx.backend.trial import seconds

_FASTER = 1.2  # how many times as fast another format must be: it costs a conversion of the weights
_TRIAL = 1024  # width of the trial's layer


def arithmetic(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The format in which this processor multiplies numbers of ``dtype`` fastest without losing any of their bits.

    Found by trying: float32 is twice as fast as bfloat16 on some x86 processors and four times slower on others, which
    no list of instructions tells. The format of the weights stays where the other wins by little.
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return dtype
    wide, own = _seconds(dtype, torch.get_num_threads())
    return torch.float32 if _FASTER * wide < own else dtype


@functools.cache  # a fact about the processor and the ``threads`` that there are
def _seconds(dtype: torch.dtype, threads: int) -> tuple[float, float]:
    """What one product of the size of a small layer took in float32 and in ``dtype`` when they were first tried."""

    def attempt() -> list[float]:
        return [seconds(functools.partial(F.linear, *_layer(tried))) for tried in (torch.float32, dtype)]

    return kept("arithmetic", f"{dtype}", attempt, _understood)


def _layer(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.ones(_TRIAL // 2, _TRIAL, dtype=dtype), torch.ones(_TRIAL, _TRIAL, dtype=dtype)


def _understood(found: list[float]) -> tuple[float, float]:
    wide, own = found
    return taken(wide), taken(own)
