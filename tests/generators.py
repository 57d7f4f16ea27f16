"""A prompt and its plain answer, a generator that knows it and a controller that seldom drafts: for their tests."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from transformers.generation.candidate_generator import CandidateGenerator

from longctx.decoding.controllers.fixed import Fixed
from longctx.drafts import Budget

TOKENIZER = tiny.tokenizer()
PROMPT = torch.randint(4, 470, (1, 9), generator=torch.Generator().manual_seed(1)).repeat(1, 3)
OPTIONS: dict[str, Any] = {"max_new_tokens": 24, "eos_token_id": None, "pad_token_id": 1}
STEADILY = OPTIONS | {"controller": "fixed:nodes=8"}  # draws no conclusion from how long passes take


def plain(model: Any, prompt: torch.Tensor = PROMPT, **options: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.generate(prompt, do_sample=False, **OPTIONS | options)  # type: ignore[no-any-return]


class Knowing(CandidateGenerator):
    """Knows the answers, says two right tokens and a wrong one, and keeps what it is given beside the ids.

    ``log`` is shared by its copies: what it is told of a request stands there after the request.
    """

    requires_model_outputs = True

    def __init__(self, answers: torch.Tensor, which: Any, log: list[tuple[torch.Tensor, dict[str, Any]]]) -> None:
        self.answers, self.log = answers, log
        self.model_kwargs_overrides = {"output_hidden_states": which}

    def __deepcopy__(self, memo: Any) -> Knowing:
        return Knowing(self.answers, self.model_kwargs_overrides["output_hidden_states"], self.log)

    def get_candidates(self, input_ids: Any, **given: Any) -> Any:
        self.log.append((input_ids, given))
        length = input_ids.shape[1]
        (mine,) = [row for row in self.answers if torch.equal(row[:length], input_ids[0])]
        said = mine[None, length : length + 3].clone()
        said[:, 2:] = (said[:, 2:] + 1) % 470
        return torch.cat((input_ids, said), 1), None


class Seldom:
    """Has drafts made in every third round; everything else is that of a fixed number."""

    def __init__(self) -> None:
        self.rounds, self.fixed = 0, Fixed(8)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fixed, name)

    def begin(self, costs: Any = None, refuted: Any = None) -> Seldom:
        return Seldom()

    def plan(self, depth: int, context: int) -> Budget | None:
        self.rounds += 1
        return self.fixed.plan(depth, context) if self.rounds % 3 == 0 else None
