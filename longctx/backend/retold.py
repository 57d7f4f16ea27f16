"""Asks a candidate generator that works from what passes say, as Hugging Face's own loop would have asked it.

Owns which states, keys and values it is handed with which text. That loop asks after every pass, and nobody else drafts
there: a generator may count on being told how many of its latest candidates were right, and on the states of just these
tokens. Here others draft too, and there are rounds without drafts, so that what it missed is told piece by piece. Keys
and values are those of committed tokens, where that loop leaves those of a wrong candidate at their end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from longctx.backend.states import joined, rows_of
from longctx.drafts import Take

States = tuple[Tensor | None, ...]
_AHEAD = 256  # tokens that there is more room for, at the least, where keys and values are moved to where they fit


@dataclass
class Shown(CausalLMOutputWithPast):
    """What is shown of a pass; ``shared_kv_states`` are those of the whole text so far, by kind of layer."""

    shared_kv_states: dict[str, tuple[Tensor, Tensor]] | None = None


class Whole:
    """Keys or values [1, heads, tokens, dim] of a text that grows."""

    def __init__(self, first: Tensor) -> None:
        self._held, self._used = first, first.shape[2]

    def grow(self, new: Tensor) -> None:
        end = self._used + new.shape[2]
        if end > self._held.shape[2]:
            size = end + max(_AHEAD, self._used // 4)
            room = self._held.new_empty(*self._held.shape[:2], size, self._held.shape[3])
            room[:, :, : self._used] = self._held[:, :, : self._used]
            self._held = room
        self._held[:, :, self._used : end] = new
        self._used = end

    def first(self, count: int) -> Tensor:
        """Those of the first ``count`` tokens: no copy."""
        return self._held[:, :, :count]


class Retold:
    """``generator`` at work on one request whose prompt has so many tokens; ``take`` gives what was said of new ones.

    Beside ids it is given their states, keys and values of all of the text, an attention mask and positions.
    """

    def __init__(self, generator: Any, take: Take, prompt: int, device: torch.device) -> None:
        self._generator, self._take, self._prompt, self._device = generator, take, prompt, device
        self._begun = False
        self._told = 0  # tokens whose states it was handed
        self._states: States | None = None  # of those behind them
        self._shared: dict[str, tuple[Whole, Whole]] = {}  # of all tokens
        self._said: tuple[Tensor, Tensor | None]

    def candidates(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """What it says after ``tokens``, ids [1, all] and logits. One that fails is told the same again."""
        self._hear()
        if not self._begun:
            self._said = self._asked(tokens[: self._prompt], None, 0)
            self._begun = True
        while self._states is not None and (left := len(tokens) - 1 - self._told):
            # the first time all of the prompt, of which it drafted nothing
            count = min(left, 1 + self._right(tokens)) if self._told else self._prompt
            shown = tuple(None if own is None else rows_of(own, 0, count) for own in self._states)
            self._said = self._asked(tokens[: self._told + count + 1], shown, count - 1 if self._told else 0)
            self._told += count
            more = left > count
            self._states = tuple(None if s is None else rows_of(s, count) for s in self._states) if more else None
        return self._said

    def _hear(self) -> None:
        if (new := self._take()) is None:
            return
        said = (*new.states, *(keys for keys, _ in new.shared.values()))
        self._device = next(own.device for own in said if own is not None)
        self._states = new.states if self._states is None else _behind(self._states, new.states)
        for kind, (keys, values) in new.shared.items():
            if kind in self._shared:
                for whole, own in zip(self._shared[kind], (keys, values), strict=True):
                    whole.grow(own)
            else:
                self._shared[kind] = Whole(keys), Whole(values)

    def _right(self, tokens: Sequence[int]) -> int:
        """How many of its latest candidates are what came of them."""
        return common(self._said[0][0, self._told + 1 :].tolist(), tokens[self._told + 1 :])

    def _asked(self, tokens: Sequence[int], states: Any, right: int) -> tuple[Tensor, Tensor | None]:
        ids = torch.tensor([tokens], device=self._device)
        positions = torch.arange(len(tokens), device=self._device)[None]
        seen = len(tokens) - 1  # no pass has seen the last
        shared = {kind: (keys.first(seen), values.first(seen)) for kind, (keys, values) in self._shared.items()}
        said: tuple[Tensor, Tensor | None] = self._generator.get_candidates(
            ids,
            model_kwargs={"attention_mask": torch.ones_like(ids), "position_ids": positions},
            model_outputs=None
            if states is None
            else Shown(hidden_states=states or None, shared_kv_states=shared or None),
            is_first_iteration=states is None,
            n_last_matches=right,
        )
        return said


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of their first tokens agree."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _behind(before: States, new: States) -> States:
    return tuple(joined(pair) for pair in zip(before, new, strict=True))
