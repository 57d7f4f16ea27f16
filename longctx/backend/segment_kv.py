"""A segment's keys and values as named tensors for a file, exact or in eight bits, and back.

Owns the two forms. In eight bits keys have one scale per channel and values one per token, as their outliers lie
(KIVI, arXiv 2402.02750, section 3). Knows no file and no segment by number.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from longctx.backend.caches import Stored

_STEPS = 127


def pack(stored: Stored, int8: bool) -> dict[str, Tensor]:
    """Tensors on the CPU: ``k0, v0, k1, …`` [kv_heads, tokens, dim], in eight bits with ``k0.scale, v0.scale, …``."""
    found = {"position": torch.tensor([stored.position])}
    for layer, (keys, values) in enumerate(zip(stored.keys, stored.values, strict=True)):
        for name, tensor, axis in ((f"k{layer}", keys, 1), (f"v{layer}", values, 2)):
            if int8:
                found[name], found[f"{name}.scale"] = _quantise(tensor.cpu(), axis)
            else:
                found[name] = tensor.cpu().contiguous()
    return found


def unpack(tensors: Mapping[str, Tensor], like: Stored, tokens: int) -> Stored:
    """The segment of ``tokens`` tokens whose tensors ``pack`` made, with layers, widths, dtype and device of ``like``.

    Raises ValueError for tensors that no segment of that model has.
    """
    runs = []
    for kind, layers in (("k", like.keys), ("v", like.values)):
        runs.append(tuple(_restore(tensors, f"{kind}{at}", layer, tokens) for at, layer in enumerate(layers)))
    position = tensors.get("position")
    if position is None or position.shape != (1,) or int(position[0]) != like.position:
        raise ValueError(f"it was not read at position {like.position}")
    return Stored(runs[0], runs[1], like.position)


def _quantise(tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Integers of eight bits, and the float32 scale of every line along ``axis``."""
    exact = tensor.float()
    largest = exact.abs().amax(axis, keepdim=True) if exact.numel() else exact.new_zeros(exact.shape[0], 1, 1)
    scale = (largest / _STEPS).clamp_min(torch.finfo(torch.float32).tiny)
    return (exact / scale).round().to(torch.int8), scale


def _restore(tensors: Mapping[str, Tensor], name: str, like: Tensor, tokens: int) -> Tensor:
    tensor, scale = tensors.get(name), tensors.get(f"{name}.scale")
    expected = (like.shape[0], tokens, like.shape[2])
    dtype = like.dtype if scale is None else torch.int8
    if tensor is None or tensor.shape != expected or tensor.dtype != dtype:
        found = "missing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
        raise ValueError(f"{name} is {found} and not {dtype} {expected}")
    try:
        exact = tensor if scale is None else tensor.float() * scale
    except RuntimeError as error:
        raise ValueError(f"the scale of {name} is {tuple(scale.shape) if scale is not None else ()}") from error
    if exact.shape != expected:
        raise ValueError(f"the scale of {name} does not fit it")
    return exact.to(device=like.device, dtype=like.dtype)
