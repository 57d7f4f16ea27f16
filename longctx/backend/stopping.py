"""When a generation is over: Hugging Face's stopping criteria, asked once for every committed token.

Knows no draft: criteria see what plain decoding would have shown them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList, StopStringCriteria


def stop_strings(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> StoppingCriteriaList:
    """Criteria that end a generation with the token that completes one of ``stop``."""
    return StoppingCriteriaList([StopStringCriteria(tokenizer, list(stop))] if stop else [])


def ends(criteria: Sequence[StoppingCriteria], prompt: Sequence[int]) -> Callable[[Sequence[int]], bool]:
    """Whether ``criteria`` end the generation after these new tokens behind ``prompt``."""
    kept = torch.tensor([list(prompt)])

    def over(new: Sequence[int]) -> bool:
        nonlocal kept
        more = len(prompt) + len(new) - kept.shape[1]
        if more > 0:
            kept = torch.cat((kept, torch.tensor([list(new[-more:])])), 1)
        no_scores: Any = None
        text = kept[:, : len(prompt) + len(new)]  # shorter again where a round failed and is made once more
        # a plain bool will do for generate too
        return any(bool(torch.as_tensor(criterion(text, no_scores)).all()) for criterion in criteria)

    return over
