"""A few rows times a matrix of weights, on a CPU: every weight is read once, and widened on its way or met as it is.

A product of few rows need take no longer than reading the weights. PyTorch's takes several times as long in formats
that a processor has no products of. The machine code is that of a step. Knows no layer and no model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longctx.kernels import steps


def suits(weight: Tensor) -> bool:
    """Whether ``product`` can be had here for ``weight`` [out, in]: on a CPU, contiguous, and of some ``version``."""
    return weight.is_cpu and weight.is_contiguous() and bool(version(weight.dtype, weight.shape[1]))


def version(dtype: torch.dtype, width: int) -> str:
    """Which compiler ``product`` is had from for weights of a format and a width; empty where it is not."""
    return steps.version(dtype, width)


def reference(x: Tensor, weight: Tensor) -> Tensor:
    """What ``product`` gives, up to the order of its sums; by tiles and dots it does for ``x`` in bfloat16."""
    return x.float() @ weight.float().t()


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``x`` [rows, in] by the transposed ``weight`` [out, in], float32 [rows, out]; sums are made in float32.

    Raises ValueError for other shapes, and for weights that do not suit.
    """
    if x.ndim != 2 or not x.is_cpu or x.shape[1] != weight.shape[1] or not suits(weight):
        raise ValueError(
            f"x {tuple(x.shape)} on {x.device}, weight {tuple(weight.shape)} of {weight.dtype} on {weight.device}: it "
            "takes contiguous weights and rows as wide as they are, on a CPU, where suits() says yes."
        )
    made = torch.empty(len(x), len(weight), dtype=torch.float32, device="cpu")
    step, own = steps.Steps(weight.dtype, len(x), (weight.shape[1],)), x.float().contiguous()
    step.pack(own, torch.empty(steps.packed(weight.dtype, *own.shape), dtype=torch.uint8, device="cpu"))
    step.product(own, weight, None, made)
    step.run()
    return made


def ready(dtype: torch.dtype, width: int) -> None:
    """Afterwards ``product`` compiles nothing for weights like these."""
    steps.ready(dtype, (width,))
