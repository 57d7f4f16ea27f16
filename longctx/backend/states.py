"""Hidden states of a request's tokens as its passes say them, for drafters that work from those.

Owns what is asked of a pass for that, what is kept of it and until when. Knows no drafter and no cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from longctx.drafts import Take
from longctx.errors import BadOption, ModelError

Which = bool | int | Sequence[int]
"""Those meant of a model's embeddings and of what each of its layers gives, as ``output_hidden_states`` takes them."""


class Watch:
    """Keeps the states of committed tokens until they are taken, of what ``which`` means."""

    def __init__(self, which: Which) -> None:
        self.which = which
        self._pending: list[Tensor | None] = []
        self._kept: list[list[Tensor | None]] = []  # of each pass

    def see(self, states: Sequence[Tensor | None]) -> None:
        """States [1, rows, dim] of the rows of a pass, by layer; a model may have more of them beside each other."""
        wanted = range(len(states)) if self.which is True else [at % len(states) for at in _layers(self.which)]
        self._pending = [own if at in wanted else None for at, own in enumerate(states)]

    def keep(self, rows: Sequence[int]) -> None:
        """The pending ``rows``, a path in order, were committed, and no others."""
        if rows and self._pending:
            self._kept.append([None if own is None else _of(own, rows) for own in self._pending])
        self._pending = []

    def take(self) -> tuple[Tensor | None, ...] | None:
        """States [1, tokens, dim] of all tokens that were committed since this was last asked, by layer.

        None for a layer that is not wanted, and for all of them where nothing was committed.
        """
        kept, self._kept = self._kept, []
        return tuple(joined([piece.pop(0) for piece in kept]) for _ in range(len(kept[0]))) if kept else None


class Watched:
    """What a target has of this: its ``length`` in tokens, of which ``watches`` keep the states."""

    def __init__(self) -> None:
        self.length = 0
        self.watches: list[Watch] = []

    @property
    def watched(self) -> bool:
        """Whether hidden states are kept."""
        return bool(self.watches)

    def watch(self, which: Which) -> Take:
        """Keeps hidden states of committed tokens from now on. Raises BadOption where there are some already."""
        if self.length:
            raise BadOption(
                f"a drafter works from the hidden states of the whole text, and the cache that was given holds "
                f"{self.length} tokens without theirs. Begin with an empty cache."
            )
        self.watches.append(Watch(which))
        return self.watches[-1].take

    def note(self, rows: Sequence[int]) -> None:
        """Of the pending rows ``rows`` were committed, and no others."""
        for watch in self.watches:
            watch.keep(rows)


def selection(watches: Iterable[Watch]) -> dict[str, Any]:
    """What a pass is to be given beside its rows for all of ``watches``."""
    wanted = [watch.which for watch in watches]
    if any(which is True for which in wanted):
        return {"output_hidden_states": True}
    layers = {layer for which in wanted for layer in _layers(which)}
    return {"output_hidden_states": sorted(layers)} if layers else {}


def shown(watches: Sequence[Watch], out: Any, first: int = 0, count: int | None = None) -> None:
    """Afterwards ``watches`` have seen the states of ``count`` rows of a pass that gave ``out``, by default of all.

    Raises ModelError where the model says none of what was asked for.
    """
    if not watches:
        return
    states = getattr(out, "hidden_states", None) or ()
    if all(own is None for own in states):
        raise ModelError(
            f"a drafter works from the hidden states that a pass gives with {selection(watches)}, and this model's "
            f"passes gave {type(out).__name__} without them. Leave that drafter out of drafters=."
        )
    for watch in watches:
        watch.see([None if own is None else rows_of(own, first, count) for own in states])


def rows_of(states: Tensor, first: int, count: int | None = None) -> Tensor:
    """``count`` tokens of states from ``first`` on, by default all: no copy."""
    dim = along(states)
    return states.narrow(dim, first, states.shape[dim] - first if count is None else count)


def joined(pieces: Sequence[Tensor | None]) -> Tensor | None:
    """The states of one layer, piece behind piece."""
    given = [own for own in pieces if own is not None]
    return torch.cat(given, along(given[0])) if given else None


def along(states: Tensor) -> int:
    """The dimension of the tokens: that behind the batch of one. Some models keep several states of each token."""
    return list(states.shape).index(1) + 1


def _of(states: Tensor, rows: Sequence[int]) -> Tensor:
    return states.index_select(along(states), torch.tensor(list(rows), device=states.device))


def _layers(which: Which) -> Sequence[int]:
    return [which] if isinstance(which, int) else which
