"""Moves keys to other positions: a key that was rotated for one position is rotated on by the difference.

Owns how a model rotates in each of its layers, found on the layer's own keys and proven on them before use: some models
leave every fourth layer unrotated, others all that see everything. Knows no model family.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from longctx.backend.alone import alone
from longctx.errors import ModelError
from longctx.keys import Turn

_APART = 7  # positions between the two keys on which a rotation is proven
_WIDE, _HALF = 1e-4, 3e-2  # how far a turned key may be from the true one, as a share of its size
_SAME, _HALF_SAME = 1e-5, 1e-3  # how far two keys may be apart that are not rotated
_VISIBLE = 0.1  # how far a one must be moved for it to tell
_CHANGING = {"dynamic", "longrope"}  # frequencies that depend on the length: no difference says how to go on


def turns(model: PreTrainedModel, kinds: list[str]) -> tuple[Turn, ...]:
    """For each layer a function that moves its keys [..., tokens, dim] on by positions [..., tokens].

    One of a layer whose keys are the same wherever they stand leaves them as they are. Raises ModelError where
    positions are no rotation of a layer's keys, or change with the length.
    """
    source = rotation(model)
    own = [_frequencies(source, kind).float() for kind in kinds]
    proofs = [_Proof(*proof) for proof in zip(*_proof(model), own, strict=True)]
    for interleaved in (False, True):
        unknown = [number for number, proof in enumerate(proofs) if not (proof.still or proof.turns(interleaved))]
        if not unknown and any(proof.moves(interleaved) for proof in proofs):
            return tuple(_still if proof.still else proof.turn(interleaved) for proof in proofs)
    raise ModelError(f"the keys of {type(model).__name__} are not moved by a rotation known here.")


def rotation(model: PreTrainedModel) -> torch.nn.Module:
    """The one part of the model that knows the frequencies. Raises ModelError where no keys can be moved by it."""
    sources = [module for module in model.modules() if any(name.endswith("inv_freq") for name in _own(module))]
    if len(sources) != 1:
        raise ModelError(f"{type(model).__name__} does not rotate its keys in one place, so they cannot be moved.")
    changing = sorted(kind for kind in map(str, _kinds(sources[0])) if kind in _CHANGING)
    if changing:
        raise ModelError(
            f"{type(model).__name__} rotates keys by how long the text is ({changing[0]}), so they cannot be moved."
        )
    return sources[0]


@dataclass(frozen=True, slots=True)
class _Proof:
    """The same keys [kv_heads, 1, dim] of a layer at two positions, and the frequencies that it would be rotated by."""

    near: Tensor
    far: Tensor
    frequencies: Tensor

    @property
    def still(self) -> bool:
        """Whether the layer does not rotate: its keys are the same, and no rotation says so any better."""
        same = _SAME if self.near.element_size() > 2 else _HALF_SAME
        return all(self._apart(self.near, style) <= min(same, self._wrong(style)) for style in (False, True))

    def turns(self, interleaved: bool) -> bool:
        """Whether the rotation gives the keys further on."""
        return self._wrong(interleaved) < self._limit

    def moves(self, interleaved: bool) -> bool:
        """Whether it gives them and they are others: keys that hardly move prove nothing."""
        return self.turns(interleaved) and self._apart(self.near, interleaved) > self._limit

    def turn(self, interleaved: bool) -> Turn:
        return functools.partial(_rotated, frequencies=self.frequencies, interleaved=interleaved)

    @property
    def _limit(self) -> float:
        return _WIDE if self.near.element_size() > 2 else _HALF

    def _wrong(self, interleaved: bool) -> float:
        turned = self._turned(self.near, interleaved)
        return max(self._apart(turned, interleaved), _share(turned, self.far))

    def _apart(self, keys: Tensor, interleaved: bool) -> float:
        """How far ``keys`` are from those further on, by the numbers that a rotation moves visibly so far.

        The others may be a hundred times as large, where keys have a bias.
        """
        ones = torch.ones_like(self.far)
        fast = (self._turned(ones, interleaved).float() - 1).abs() > _VISIBLE
        return _share(keys[fast], self.far[fast])

    def _turned(self, keys: Tensor, interleaved: bool) -> Tensor:
        return self.turn(interleaved)(keys, torch.full(keys.shape[:-1], _APART, device=keys.device))


def _share(one: Tensor, other: Tensor) -> float:
    """The length of the difference as a share of that of ``other``."""
    return float((one.float() - other.float()).norm() / other.float().norm().clamp_min(1e-12))


def _still(keys: Tensor, by: Tensor) -> Tensor:
    return keys


def _rotated(keys: Tensor, by: Tensor, frequencies: Tensor, interleaved: bool) -> Tensor:
    apart, which = torch.unique(by, return_inverse=True)  # keys move in runs: few differences, and sines are dear
    # positions of millions leave float32 few digits, and this kind of device has no wider numbers
    there = torch.device("cpu") if keys.device.type == "mps" else keys.device
    angles = apart.to(there).unsqueeze(-1).double() * frequencies.to(there).double()
    cos, sin = (found.float().to(keys.device)[which] for found in (angles.cos(), angles.sin()))
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


def _proof(model: PreTrainedModel) -> tuple[list[Tensor], list[Tensor]]:
    """Every layer's keys of one token at position 0 and further on, [kv_heads, 1, dim].

    Such a token attends to itself alone: what it has become by a layer is the same wherever it stands, up to rounding.
    """
    token = torch.tensor([[int(model.config.get_text_config(decoder=True).vocab_size) // 2]], device=model.device)
    keys = []
    for position in (0, _APART):
        cache = DynamicCache(config=model.config)
        with torch.inference_mode(), alone(model):
            model(token, position_ids=torch.tensor([[position]], device=model.device), past_key_values=cache)
        keys.append([layer.keys[0] for layer in cache.layers])  # type: ignore[union-attr, index]
    return keys[0], keys[1]
