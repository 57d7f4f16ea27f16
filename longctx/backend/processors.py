"""Hugging Face's logits processors for one prompt of a batch: some know of every prompt how long its padding is.

Knows no draft.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import Tensor

from longctx.backend.copies import of_its_own
from longctx.errors import BadOption

Processor = Callable[[Tensor, Tensor], Tensor]


def of_row(processors: Sequence[Processor], row: int, batch: int) -> tuple[Processor, ...]:
    """``processors``, made for ``batch`` prompts, as those of the prompt ``row`` alone: ids [1, tokens].

    Of a batch each prompt has copies, since some remember from call to call what they were shown; what they share among
    each other the copies share too. Raises BadOption where they cannot be copied.
    """
    if batch == 1:
        return tuple(processors)
    try:
        own = of_its_own(tuple(processors))
    except (TypeError, ValueError, AttributeError, RuntimeError, copy.Error) as error:  # as their parts raise
        raise BadOption(
            f"the logits processors cannot be copied ({type(error).__name__}: {error}), and each prompt of a batch "
            "needs its own. Ask one prompt at a time."
        ) from error
    return tuple(_Row(processor, row, batch) for processor in own)


class _Row:
    """Shows a processor as many copies of the one prompt and takes its own row of the answer."""

    def __init__(self, processor: Processor, row: int, batch: int) -> None:
        self._processor, self._row, self._batch = processor, row, batch

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        # repeated and not expanded: processors write into what they get
        said = self._processor(ids.repeat(self._batch, 1), logits.repeat(self._batch, 1))
        return said[self._row : self._row + 1]
