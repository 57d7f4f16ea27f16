"""A few rows times a matrix of weights, where the library's own way does not read the weights at the memory's speed.

Owns that product and the trial that decides for it. In float32 PyTorch multiplies a single row in one thread, and a few
rows by a kernel made for many; a product that begins with the weights does neither. Knows no layer and no model.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from longctx.backend.trial import faster

_MOST = 12  # rows: more are as fast the usual way
_CHUNK = 4  # rows multiplied at a time
_TRIAL = (16384, 1024)  # weights of the trial: too large for a cache, as all layers together are


def narrow(rows: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether ``product`` is the way for ``rows`` rows of ``dtype``: in float32 on a CPU, where it is the faster."""
    if not 0 < rows <= _MOST or device.type != "cpu" or dtype != torch.float32:
        return False
    return _wins(min(rows, _CHUNK))


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` [rows, in] by the transposed ``weight`` [out, in], up to rounding what ``F.linear`` gives."""
    out, width = weight.shape
    rows = len(x)
    if width > 2 * out and rows not in (2, 3):  # a few long sums: here the usual way is as fast
        return F.linear(x, weight, bias)
    # an odd row out would be a product with a vector, or one for which the library has no good kernel
    even = torch.cat((x, x[-1:])) if rows % 2 else x
    made = torch.cat([torch.mm(weight, part.t()).t() for part in torch.split(even, _CHUNK)])[:rows]
    return made if bias is None else made + bias


@functools.cache  # a fact about the processor
def _wins(rows: int) -> bool:
    x, weight = (torch.ones(size, dtype=torch.float32, device="cpu") for size in ((rows, _TRIAL[1]), _TRIAL))
    return faster(lambda: product(x, weight), lambda: F.linear(x, weight))
