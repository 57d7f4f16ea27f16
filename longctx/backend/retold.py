"""Asks a candidate generator that works from hidden states, as Hugging Face's own loop would have asked it so far.

Owns which states it is handed with which text. That loop asks after every pass, and nobody else drafts there: a
generator may count on being told how many of its latest candidates were right, and on the states of just these tokens.
Here others draft too, and there are rounds without drafts, so that what it missed is told piece by piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from longctx.backend.states import joined, rows_of
from longctx.drafts import Take

States = tuple[Tensor | None, ...]


class Retold:
    """``generator`` at work on one request whose prompt has so many tokens; ``take`` gives the states of new ones.

    Beside ids it is given those, an attention mask and positions, and nothing else of a pass.
    """

    def __init__(self, generator: Any, take: Take, prompt: int, device: torch.device) -> None:
        self._generator, self._take, self._prompt, self._device = generator, take, prompt, device
        self._begun = False
        self._told = 0  # tokens whose states it was handed
        self._states: States | None = None  # of those behind them
        self._said: tuple[Tensor, Tensor | None]

    def candidates(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """What it says after ``tokens``, ids [1, all] and logits. One that fails is told the same again."""
        self._states = _behind(self._states, self._take())
        self._device = next((own.device for own in self._states or () if own is not None), self._device)
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

    def _right(self, tokens: Sequence[int]) -> int:
        """How many of its latest candidates are what came of them."""
        return common(self._said[0][0, self._told + 1 :].tolist(), tokens[self._told + 1 :])

    def _asked(self, tokens: Sequence[int], states: Any, right: int) -> tuple[Tensor, Tensor | None]:
        ids = torch.tensor([tokens], device=self._device)
        positions = torch.arange(len(tokens), device=self._device)[None]
        said: tuple[Tensor, Tensor | None] = self._generator.get_candidates(
            ids,
            model_kwargs={"attention_mask": torch.ones_like(ids), "position_ids": positions},
            model_outputs=None if states is None else CausalLMOutputWithPast(hidden_states=states),
            is_first_iteration=states is None,
            n_last_matches=right,
        )
        return said


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of their first tokens agree."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _behind(before: States | None, new: States | None) -> States | None:
    if before is None or new is None:
        return new if before is None else before
    return tuple(joined(pair) for pair in zip(before, new, strict=True))
