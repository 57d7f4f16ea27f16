"""When a generation is over: Hugging Face's stopping criteria, asked once for every committed token.

Owns what a criterion is shown of a batch. Knows no draft: criteria see what plain decoding would have shown them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from longctx.backend.copies import of_each_prompt

_BY_ROW = (EosTokenCriteria, MaxTimeCriteria, StopStringCriteria)  # they remember nothing


def strings(model: PreTrainedModel, stop: Sequence[str]) -> list[str]:
    """``stop``, and the strings that end the model's answers by its own configuration."""
    known = getattr(model.generation_config, "stop_strings", None) or []
    return [*stop, *([known] if isinstance(known, str) else known)]


def stop_strings(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> StoppingCriteriaList:
    """Criteria that end a generation with the token that completes one of ``stop``."""
    return StoppingCriteriaList([StopStringCriteria(tokenizer, list(stop))] if stop else [])


def limit(criteria: Sequence[StoppingCriteria], most: int) -> int:
    """Tokens of prompt and answer: ``most``, or what a criterion says that stands in the place of generate's own."""
    return min((one.max_length for one in criteria if type(one) is MaxLengthCriteria), default=most)


def ends(criteria: Sequence[StoppingCriteria], prompts: Tensor, row: int) -> Callable[[Sequence[int]], bool]:
    """Whether ``criteria`` end the generation after these new tokens behind the prompt ``row`` of [batch, tokens].

    Of a batch each prompt has criteria of its own, which see it in its row. Those that count tokens are left out: that
    is ``limit``. Raises BadOption for criteria that cannot be copied.
    """
    batch, kept = len(prompts), prompts[row : row + 1]
    asked = [one for one in criteria if type(one) is not MaxLengthCriteria]
    stock = [one for one in asked if type(one) in _BY_ROW]
    others = of_each_prompt([one for one in asked if type(one) not in _BY_ROW], batch, "stopping criteria")

    def over(new: Sequence[int]) -> bool:
        nonlocal kept
        more = prompts.shape[1] + len(new) - kept.shape[1]
        if more > 0:
            kept = torch.cat((kept, torch.tensor([list(new[-more:])], device=kept.device)), 1)
        text = kept[:, : prompts.shape[1] + len(new)]  # shorter again where a round failed and is made once more
        said = [_said(one, text, 1, 0) for one in stock]
        return any([*said, *(_said(one, text, batch, row) for one in others)])  # all are asked: some keep count

    return over


def _said(criterion: StoppingCriteria, text: Tensor, batch: int, row: int) -> bool:
    no_scores: Any = None
    said = torch.as_tensor(criterion(text.repeat(batch, 1) if batch > 1 else text, no_scores))
    # a plain bool will do for generate too
    return bool(said[row]) if said.ndim and len(said) == batch else bool(said.all())
