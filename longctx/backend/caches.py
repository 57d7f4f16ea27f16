"""Cache layers that hand a segment's keys and values out of one forward pass and into another.

Owns slots and their alignment. Knows no text, no scores: it stores what the model computed and gives it back exactly.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from longctx.errors import ModelError


@dataclass(frozen=True, slots=True)
class Stored:
    """Keys and values of one run of tokens, layer by layer: ``keys[l]`` and ``values[l]`` are [kv_heads, tokens, dim].

    Keys are rotated for logical positions that begin at ``position``.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    position: int = 0

    @property
    def tokens(self) -> int:
        return int(self.keys[0].shape[1]) if self.keys else 0

    @property
    def depth(self) -> int:
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.keys, *self.values))


class CacheLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """What transformers wants of any layer; subclasses only say what ``update`` does."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


class _Capture(CacheLayer):  # type: ignore[no-untyped-call]
    """Keeps what the layer computed for the tokens of this one pass, which see ``before`` first, if there is any."""

    def __init__(self, dtype: torch.dtype, before: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.dtype, self.before = dtype, before

    def get_seq_length(self) -> int:
        return 0 if self.before is None else int(self.before[0].shape[1])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values = key_states.to(self.dtype), value_states.to(self.dtype)
        if self.before is None:
            return key_states, value_states
        return _behind(self.before[0], key_states), _behind(self.before[1], value_states)


def _behind(run: Tensor, states: Tensor) -> Tensor:
    """``states`` [batch, heads, tokens, dim] behind ``run`` [heads, tokens, dim], which all rows of the batch share."""
    return torch.cat((run.to(states).expand(states.shape[0], -1, -1, -1), states), 2)


class CaptureCache(Cache):
    """Catches the states of one pass over right-padded rows, as ``dtype``; all rows stand behind the run ``before``.

    Layers that are ``sharing`` look at the keys of earlier ones and have none of their own.
    """

    def __init__(
        self, layers: int, dtype: torch.dtype, before: Stored | None = None, sharing: Collection[int] = ()
    ) -> None:
        shared = [] if before is None else list(zip(before.keys, before.values, strict=True))
        unread = [None] * (layers - len(shared))  # of a run that was read less deep; the pass ends before them
        self._captured = [_Capture(dtype, states) for states in (*shared, *unread)]
        self._offset = 0 if before is None else before.tokens
        self._sharing = sharing
        super().__init__(layers=list(self._captured))

    def cut(self, row: int, tokens: int, depth: int) -> Stored:
        """The first ``tokens`` tokens of one batch row, copied, for the first ``depth`` layers."""
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for number, layer in enumerate(self._captured[:depth]):
            if layer.keys is None or layer.values is None:
                if number not in self._sharing:
                    raise ModelError(f"layer {number} keeps no keys of its own")
                for states in (keys, values):
                    states.append(states[0][..., :0])
                continue
            keys.append(layer.keys[row, :, :tokens].clone(memory_format=torch.contiguous_format))
            values.append(layer.values[row, :, :tokens].clone(memory_format=torch.contiguous_format))
        return Stored(tuple(keys), tuple(values), self._offset)


class _Replay(CacheLayer):  # type: ignore[no-untyped-call]
    """Gives back stored keys and values, right-aligned, followed by those of the new tokens."""

    def __init__(self, index: int, owner: ReplayCache) -> None:
        super().__init__()
        self.index, self.owner = index, owner

    def get_seq_length(self) -> int:
        return self.owner.width

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.owner.fill(self.index, key_states, value_states)


class ReplayCache(Cache):
    """Batch rows over stored runs, for one pass of new tokens that scores and is then forgotten.

    Row ``b`` holds the runs ``rows[b]`` side by side, right-aligned to ``width`` slots, so that the distance of two
    slots is the distance of their positions: sliding windows stay exact. All layers share one buffer, since a layer's
    keys are not needed once the layer is done.
    """

    def __init__(self, rows: Sequence[Sequence[Stored]]) -> None:
        self.rows = rows
        self.lengths = [sum(run.tokens for run in row) for row in rows]
        self.width = max(self.lengths)
        self._buffers: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        depth = min(run.depth for row in rows for run in row)
        super().__init__(layers=[_Replay(index, self) for index in range(depth)])

    def fill(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        batch, heads, new, dim = keys.shape
        shape = (batch, heads, self.width + new, dim, values.shape[-1])
        if shape not in self._buffers:
            # zeros: masked slots are multiplied by zero weights and must be finite
            self._buffers[shape] = (
                keys.new_zeros(batch, heads, self.width + new, dim),
                values.new_zeros(batch, heads, self.width + new, values.shape[-1]),
            )
        all_keys, all_values = self._buffers[shape]
        for b, (row, length) in enumerate(zip(self.rows, self.lengths, strict=True)):
            at = self.width - length
            for run in row:
                all_keys[b, :, at : at + run.tokens] = run.keys[layer]
                all_values[b, :, at : at + run.tokens] = run.values[layer]
                at += run.tokens
        all_keys[:, :, self.width :] = keys
        all_values[:, :, self.width :] = values
        return all_keys, all_values

    def valid(self, new: int) -> Tensor:
        """Which slots hold tokens, [batch, width + new]; padding stands on the left."""
        slots = torch.arange(self.width + new)
        first = torch.tensor([self.width - length for length in self.lengths])
        return slots[None, :] >= first[:, None]
