"""What a request's passes say of its tokens beside logits, for drafters that work from that.

Owns what is asked of a pass, what is kept of it and until when. Knows no drafter and no cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from longctx.backend.alone import turn
from longctx.drafts import Seen, Take
from longctx.errors import BadOption, ModelError

STATES, SHARED = "output_hidden_states", "return_shared_kv_states"
OPTIONS = (STATES, SHARED)
"""Of a pass, as Hugging Face names them: hidden states of layers, and the keys and values that others of them read."""


class Watch:
    """Keeps what passes say of committed tokens until it is taken, with ``options`` of ``OPTIONS``."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = _wanted(options)
        self._names: list[str] = []  # of what is shared
        self._pending: list[Tensor | None] = []  # the states, and behind them keys, values, keys, values...
        self._kept: list[list[Tensor | None]] = []  # of each pass

    def see(self, out: Any, first: int, count: int, rows: int) -> None:
        """``count`` rows from ``first`` on are pending, of a pass over ``rows`` that gave ``out``."""
        which, states = self.options.get(STATES, ()), getattr(out, "hidden_states", None) or ()
        wanted = range(len(states)) if which is True else [at % len(states) for at in _layers(which)]
        shared = out.shared_kv_states if SHARED in self.options else {}
        self._names = list(shared)
        # of keys and values those before the rows may come along; tokens go where they are in states
        kv = [own[:, :, -rows:].transpose(1, 2) for name in self._names for own in shared[name]]
        said = [*(own if at in wanted else None for at, own in enumerate(states)), *kv]
        self._pending = [None if own is None else rows_of(own, first, count) for own in said]

    def keep(self, rows: Sequence[int]) -> None:
        """The pending ``rows``, a path in order, were committed, and no others."""
        if rows and self._pending:
            self._kept.append([None if own is None else _of(own, rows) for own in self._pending])
        self._pending = []

    def take(self) -> Seen | None:
        """What was said of all tokens that were committed since this was last asked; None where none were."""
        if not self._kept:
            return None
        kept, self._kept = self._kept, []
        said = [joined([piece.pop(0) for piece in kept]) for _ in range(len(kept[0]))]
        states, kv = said[: len(said) - 2 * len(self._names)], said[len(said) - 2 * len(self._names) :]
        turned = [own.transpose(1, 2) for own in kv if own is not None]
        return Seen(tuple(states), dict(zip(self._names, zip(turned[::2], turned[1::2], strict=True), strict=True)))


class Watched:
    """What every target has: its ``length`` in tokens, of which ``watches`` keep what passes say, and its turn."""

    goes_on = True

    def __init__(self) -> None:
        self.length = 0
        self.watches: list[Watch] = []

    def turn(self) -> AbstractContextManager[None]:
        """Inside, no other thread makes a pass."""
        return turn()

    @property
    def watched(self) -> bool:
        """Whether more than logits is kept of a pass."""
        return bool(self.watches)

    def watch(self, options: Mapping[str, Any]) -> Take:
        """Keeps what passes say of committed tokens from now on.

        Raises BadOption for options that are not of ``OPTIONS``, and where there are tokens already.
        """
        if named := unheard(options):
            raise BadOption(f"a drafter works from what passes say with {named}, and is shown {' and '.join(OPTIONS)}.")
        if self.length:
            raise BadOption(
                f"a drafter works from what passes say of the whole text, and the cache that was given holds "
                f"{self.length} tokens of which that is not known. Begin with an empty cache."
            )
        self.watches.append(Watch(options))
        return self.watches[-1].take

    def note(self, rows: Sequence[int]) -> None:
        """Of the pending rows ``rows`` were committed, and no others."""
        for watch in self.watches:
            watch.keep(rows)


def unheard(options: Mapping[str, Any]) -> str:
    """Which of ``options`` nobody is shown anything of, in words; empty where there are some and all can be shown."""
    wanted = _wanted(options)
    return ", ".join(sorted(wanted.keys() - set(OPTIONS))) or ("" if wanted else "no option of a pass that it names")


def selection(watches: Iterable[Watch]) -> dict[str, Any]:
    """What a pass is to be given beside its rows for all of ``watches``."""
    wanted = [watch.options for watch in watches]
    given: dict[str, Any] = {SHARED: True} if any(SHARED in own for own in wanted) else {}
    which = [own[STATES] for own in wanted if STATES in own]
    if which:
        every = any(own is True for own in which)
        given[STATES] = every or sorted({layer for own in which for layer in _layers(own)})
    return given


def shown(watches: Sequence[Watch], out: Any, rows: int, first: int = 0, count: int | None = None) -> None:
    """Afterwards ``watches`` have seen ``count`` of the ``rows`` of a pass that gave ``out``, by default all.

    Raises ModelError where the model says none of what was asked for.
    """
    asked = selection(watches)
    for name, given in ((STATES, "hidden_states"), (SHARED, "shared_kv_states")):
        said = getattr(out, given, None) or ()
        if name in asked and not (said if name == SHARED else [own for own in said if own is not None]):
            raise ModelError(
                f"a drafter works from what passes say with {name}, and this model's passes gave {type(out).__name__} "
                "without it. Leave that drafter out of drafters=."
            )
    for watch in watches:
        watch.see(out, first, rows if count is None else count, rows)


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


def _wanted(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not False and value not in (None, [], ())}


def _layers(which: bool | int | Sequence[int]) -> Sequence[int]:
    return [which] if isinstance(which, int) else which
