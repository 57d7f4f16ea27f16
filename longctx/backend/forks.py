"""A context's layers and their forks: rows of a batch behind a beginning that all forks share and none changes.

Owns which slots are whose. Knows no attention and no method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from longctx.backend.slots import Slots
from longctx.errors import CacheError
from longctx.keys import Index, Turn
from longctx.protocols import KVPolicy


@dataclass(frozen=True, slots=True)
class Held:
    """One layer of a context. One that sees a ``window`` has no index: these are the keys in its window.

    ``kept`` is a cache layer of transformers that no policy can do anything with, as it was after the context.
    """

    keys: Tensor  # [kv_heads, slots, dim]
    values: Tensor  # [kv_heads, slots, dim]
    index: Index | None
    window: int | None = None
    turn: Turn | None = None
    slack: Tensor | None = None  # float32 [kv_heads]: see backend/slack.py
    kept: Any = None

    @property
    def nbytes(self) -> int:
        own = () if self.index is None else tuple(self.index.tensors.values())
        order = () if self.index is None or self.index.stored is None else (self.index.stored,)
        return sum(tensor.nbytes for tensor in (self.keys, self.values, *own, *order))


@dataclass(frozen=True, slots=True)
class Context:
    """The layers of a model that has read ``tokens`` tokens; ``ids`` are those where they are known."""

    tokens: int
    layers: tuple[Held, ...]
    policy: KVPolicy
    ids: tuple[int, ...] = ()


class Fork(Slots):  # type: ignore[no-untyped-call]
    """The rows of a batch behind a shared beginning of one row; subclasses say what the beginning is."""

    def __init__(self, held: Held, tokens: int) -> None:
        super().__init__(0, held.window)
        self.held, self.tokens = held, tokens
        self.padding = 0  # the most slots of a row of this pass that hold no token
        self.rewind()

    @property
    def nbytes(self) -> int:
        """Of the shared beginning and of the slots behind it."""
        return self.held.nbytes + super().nbytes

    def rewind(self) -> None:
        """Only the beginning is left afterwards."""
        self.keys, self.values, self.used, self.dropped = None, None, 0, self.tokens

    def copied(self, other: Fork) -> None:
        """Afterwards this holds what ``other`` holds, in memory of its own."""
        if other.keys is not None and other.values is not None:
            self.keys, self.values = other.keys[:, :, : other.used].clone(), other.values[:, :, : other.used].clone()
            self.used, self.dropped = other.used, other.dropped

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.keys is not None and self.values is not None:
            chosen = indices.to(self.keys.device)
            self.keys, self.values = self.keys.index_select(0, chosen), self.values.index_select(0, chosen)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.repeat_interleave(repeats, 0), self.values.repeat_interleave(repeats, 0)

    def check_crop(self, count: int) -> None:
        """Raises CacheError where the last ``count`` tokens cannot be taken back."""
        behind = self.get_seq_length() - self.tokens
        if not 0 <= count <= behind:
            raise CacheError(
                f"crop({-count}): {behind} tokens are behind the context of {self.tokens}, and only those can be taken "
                f"back, with a negative number."
            )

    def crop(self, tokens_to_remove: int) -> None:
        self.used += tokens_to_remove

    def reset(self) -> None:
        self.rewind()


class Window(Fork):  # type: ignore[no-untyped-call]
    """A layer that sees a window: the context's last tokens and the new ones, the oldest dropped once out of sight."""

    def rewind(self) -> None:
        super().rewind()
        if not self.held.keys.shape[1]:
            return
        self.keys, self.values = self.held.keys[None], self.held.values[None]
        self.used = self.keys.shape[2]
        self.dropped = self.tokens - self.used

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.window is not None
        if self.keys is not None and self.values is not None and len(self.keys) != len(key_states):
            self.keys = self.keys.expand(len(key_states), -1, -1, -1)
            self.values = self.values.expand(len(key_states), -1, -1, -1)
        keys, values = super().update(key_states, value_states)
        left = self.window - 1 + self.padding
        if self.used > left + self.window:  # into new memory: this pass still reads the old
            self.dropped, self.used = self.dropped + self.used - left, left
            first = keys.shape[2] - left
            self.keys, self.values = keys[:, :, first:].clone(), values[:, :, first:].clone()
        return keys, values

    def check_crop(self, count: int) -> None:
        if count and self.dropped > self.tokens - self.held.keys.shape[1]:
            raise CacheError("a layer that sees a window has dropped what would be seen again. Use rewind() or a fork.")
        super().check_crop(count)
