"""Moves keys to other positions: a key that was rotated for one position is rotated on by the difference.

Owns how a model rotates, found on its own keys and proven on them before use. Knows no model family.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from longctx.backend.alone import alone
from longctx.errors import ModelError
from longctx.keys import Turn

_APART = 7  # positions between the two keys on which a rotation is proven
_WIDE, _HALF = 1e-4, 3e-2  # how far a turned key may be from the true one, as a share of its size
_CHANGING = {"dynamic", "longrope"}  # frequencies that depend on the length: no difference says how to go on


def turns(model: PreTrainedModel, kinds: list[str]) -> tuple[Turn, ...]:
    """For each layer a function that moves its keys [..., tokens, dim] on by positions [..., tokens].

    Raises ModelError where the model's positions are no rotation of its keys, or change with the length.
    """
    sources = [module for module in model.modules() if any(name.endswith("inv_freq") for name in _own(module))]
    if len(sources) != 1 or not kinds:
        raise ModelError(f"{type(model).__name__} does not rotate its keys in one place, so they cannot be moved.")
    source = sources[0]
    changing = sorted(kind for kind in map(str, _kinds(source)) if kind in _CHANGING)
    if changing:
        raise ModelError(
            f"{type(model).__name__} rotates keys by how long the text is ({changing[0]}), so they cannot be moved."
        )
    first, second = _proof(model)
    frequencies = [_frequencies(source, kind).float() for kind in kinds]
    found = [style for style in (False, True) if _proven(first, second, frequencies[0], style)]
    if not found:
        raise ModelError(f"the keys of {type(model).__name__} are not moved by a rotation known here.")
    return tuple(_turn(own, found[0]) for own in frequencies)


def _turn(frequencies: Tensor, interleaved: bool) -> Turn:
    def turn(keys: Tensor, by: Tensor) -> Tensor:
        return _rotated(keys, by, frequencies, interleaved)

    return turn


def _rotated(keys: Tensor, by: Tensor, frequencies: Tensor, interleaved: bool) -> Tensor:
    apart, which = torch.unique(by, return_inverse=True)  # keys move in runs: few differences, and sines are dear
    angles = apart.unsqueeze(-1).double() * frequencies.double()  # positions of millions leave float32 few digits
    cos, sin = angles.cos().float()[which], angles.sin().float()[which]
    half = frequencies.shape[0]
    moved, rest = keys[..., : 2 * half].float(), keys[..., 2 * half :]
    if interleaved:
        one, other = moved[..., ::2], moved[..., 1::2]
        turned = torch.stack((one * cos - other * sin, other * cos + one * sin), -1).flatten(-2)
    else:
        one, other = moved[..., :half], moved[..., half:]
        turned = torch.cat((one * cos - other * sin, other * cos + one * sin), -1)
    return torch.cat((turned.to(keys.dtype), rest), -1)


def _own(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.named_buffers(recurse=False) if "original" not in name}


def _kinds(source: Any) -> list[Any]:
    kind = getattr(source, "rope_type", "default")
    return list(kind.values()) if isinstance(kind, dict) else [kind]


def _frequencies(source: torch.nn.Module, kind: str) -> Tensor:
    """The frequencies of one kind of layer: its own where the model has several."""
    own = {name: value for name, value in _own(source).items() if name.endswith("inv_freq")}
    return own.get(f"{kind}_inv_freq", next(iter(own.values())))


def _proof(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """The first layer's keys of one token at position 0 and further on, [kv_heads, 1, dim]."""
    token = torch.tensor([[int(model.config.get_text_config(decoder=True).vocab_size) // 2]], device=model.device)
    keys = []
    for position in (0, _APART):
        cache = DynamicCache(config=model.config)
        with torch.inference_mode(), alone(model):
            model(token, position_ids=torch.tensor([[position]], device=model.device), past_key_values=cache)
        keys.append(cache.layers[0].keys[0])  # type: ignore[union-attr, index]
    return keys[0], keys[1]


def _proven(first: Tensor, second: Tensor, frequencies: Tensor, interleaved: bool) -> bool:
    by = torch.full(first.shape[:-1], _APART, device=first.device)
    turned = _rotated(first, by, frequencies, interleaved).float()
    limit = _WIDE if first.element_size() > 2 else _HALF
    moved = (turned - first.float()).norm() > limit * first.float().norm()
    return bool(moved) and bool((turned - second.float()).norm() < limit * second.float().norm())
