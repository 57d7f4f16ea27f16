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
    """Keeps the states of committed tokens until they are taken: of what ``which`` means, at least."""

    def __init__(self, which: Which) -> None:
        self.which = which
        self._pending: Sequence[Tensor | None] = ()
        self._kept: list[Sequence[Tensor | None]] = []  # of each pass

    def see(self, states: Sequence[Tensor | None]) -> None:
        """States [1, rows, dim] of the rows of a pass, by layer; a model may have more of them beside each other."""
        self._pending = states

    def keep(self, rows: Sequence[int]) -> None:
        """The pending ``rows``, a path in order, were committed, and no others."""
        if rows and self._pending:
            self._kept.append([None if own is None else _of(own, rows) for own in self._pending])
        self._pending = ()

    def take(self) -> tuple[Tensor | None, ...] | None:
        """States [1, tokens, dim] of all tokens that were committed since this was last asked, by layer.

        None for a layer that no one wants, and for all of them where nothing was committed.
        """
        kept, self._kept = self._kept, []
        layers = zip(*kept, strict=True)
        return tuple(None if own[0] is None else torch.cat(own, along(own[0])) for own in layers) or None


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


def selection(watches: Iterable[Watch]) -> dict[str, Any]:
    """What a pass is to be given beside its rows for all of ``watches``."""
    wanted = [watch.which for watch in watches]
    if any(which is True for which in wanted):
        return {"output_hidden_states": True}
    layers = {layer for which in wanted for layer in ([which] if isinstance(which, int) else which)}
    return {"output_hidden_states": sorted(layers)} if layers else {}


def shown(watches: Sequence[Watch], out: Any, rows: slice = slice(None)) -> None:
    """Afterwards ``watches`` have seen the states of ``rows`` of a pass that gave ``out``.

    Raises ModelError where the model says none of what was asked for.
    """
    if not watches:
        return
    states = getattr(out, "hidden_states", None) or ()
    if all(own is None for own in states):
        raise ModelError(f"the model gave {type(out).__name__} without the hidden states from which a drafter works.")
    for watch in watches:
        watch.see([None if own is None else _of(own, range(own.shape[along(own)])[rows]) for own in states])


def along(states: Tensor) -> int:
    """The dimension of the tokens: that behind the batch of one. Some models keep several states of each token."""
    return list(states.shape).index(1) + 1


def _of(states: Tensor, rows: Sequence[int]) -> Tensor:
    return states.index_select(along(states), torch.tensor(list(rows), device=states.device))
