"""What a result may claim of its tokens.

Owns the words and when they hold. Knows no method.
"""

from __future__ import annotations

from typing import Any

import torch

from longctx.backend.rope import frequencies
from longctx.types import Guarantee


def guarantee(model: Any, temperature: float, first: int, last: int, whole: bool = True) -> Guarantee:
    """What stays unchanged from ``first`` tokens to ``last``: in wide floats every token, else the law up to rounding.

    A model whose rotary frequencies change on the way goes on from keys that were rotated otherwise: no promise. Nor
    where it does not see the ``whole`` of what it is to go on from.
    """
    if not whole or frequencies(model.config).change(first, last):
        return "approximate"
    wide = model.dtype in (torch.float32, torch.float64)
    return "exact" if wide and temperature == 0 else "exact-up-to-float"
