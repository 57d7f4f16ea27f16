"""Hugging Face's logits processors for one prompt of a batch: some know of every prompt how long its padding is.

Knows no draft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longctx.backend.copies import of_each_prompt

Processor = Callable[[Tensor, Tensor], Tensor]


def of_row(processors: Sequence[Processor], row: int, batch: int, device: torch.device) -> tuple[Processor, ...]:
    """``processors``, made for ``batch`` prompts on ``device``, as those of the prompt ``row`` alone: ids [1, tokens].

    Of a batch each prompt has copies. Raises BadOption where they cannot be copied.
    """
    own = of_each_prompt(processors, batch, "logits processors")
    return tuple(_Row(processor, row, batch, device) for processor in own)


class _Row:
    """Shows a processor as many copies of the one prompt, where it was made, and takes its own row of the answer."""

    def __init__(self, processor: Processor, row: int, batch: int, device: torch.device) -> None:
        self._processor, self._row, self._batch, self._device = processor, row, batch, device

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        shown = (ids.to(self._device), logits.to(self._device))
        if self._batch == 1:
            return self._processor(*shown).to(logits.device)
        # repeated and not expanded: processors write into what they get
        said = self._processor(*(one.repeat(self._batch, 1) for one in shown))
        return said[self._row : self._row + 1].to(logits.device)
