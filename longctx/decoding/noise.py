"""Random numbers that depend on a seed and a position only, so that drafting cannot change what is drawn.

Knows no model and no draft.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_WORD = (1 << 64) - 1


def gumbel(seed: int, position: int, size: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise [size] for the token at absolute ``position``; the same on every call."""
    generator = torch.Generator(device="cpu").manual_seed(_mixed(seed, position))
    drawn = torch.empty(size, dtype=torch.float32, device="cpu").exponential_(generator=generator)
    return drawn.log_().neg_().to(device)


def uniforms(seed: int, position: int) -> np.random.Generator:
    """Numbers for the decisions at absolute ``position``, independent of ``gumbel``'s."""
    return np.random.default_rng([_mixed(seed, position), 1])


def row_seed(seed: int, row: int) -> int:
    """The seed of one row of a batch, so that equal prompts draw apart; the first has ``seed`` itself."""
    return _mixed(seed, -1 - row) if row else seed


def _mixed(seed: int, position: int) -> int:
    """63 bits that look unrelated for neighbouring seeds and positions (SplitMix64)."""
    z = (seed + 0x9E3779B97F4A7C15 * (position + 1)) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return (z ^ (z >> 31)) >> 1
