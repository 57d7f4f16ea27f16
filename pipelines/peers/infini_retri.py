"""infini-retri 0.0.3: the released package of InfiniRetri (arXiv 2502.12962), which reads a text chunk by chunk.

It finds text and question again in its own prompt, which fails unless blank lines stand around both, so they do here.
It puts an empty system turn before them, samples by default (here it is greedy) and has no budget: ``topk`` tokens
choose whole sentences. What was read in the end is known from the last long pass.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from . import _models

NAME, TORCH = "infini-retri", True
REQUIRES = ("infini-retri==0.0.3", "transformers==4.57.6", "scipy", "seaborn", "tiktoken", "tqdm")
OPTIONS: dict[str, Any] = {"topk": 300, "window": 1024, "phrase": 8}
FILES = ()


def load(asked: Mapping[str, Any]) -> Released:
    return Released(asked)


class Released:
    """The package's own class around the model."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        from infini_retri import InfiniRetri

        own = asked["options"]
        self._model, self._tokenizer = _models.load(asked, "eager")  # it needs the attention maps
        self._method = InfiniRetri(
            self._model, self._tokenizer, topk=own["topk"], answer_length=own["phrase"], window_length=own["window"]
        )
        self.facts = _models.facts(self._model, "infini-retri")

    def check(self, ids: list[int]) -> list[int]:
        return _models.check(self._model, ids)

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        template = re.sub(r"\s*(\{context\}|\{question\})\s*", r"\n\n\1\n\n", asked["template"])
        started = time.perf_counter()
        with _models.Passes(self._model) as passes:
            text = self._method.generate(
                context=asked["text"],
                question=asked["question"],
                prompt=template,
                max_new_tokens=asked["max_new_tokens"],
            )
        last = max(at for at, tokens in enumerate(passes.tokens) if tokens > 1)
        shown = self._tokenizer.decode(passes.prompt)
        whole = " ".join(asked["text"].split()) in " ".join(shown.split())
        return {
            "text": text.strip(),
            "shown": shown,
            "measured": {
                "prompt_tokens": passes.tokens[last],
                "new_tokens": len(passes.tokens) - last,
                "tokens_read": sum(passes.tokens[:last]),
            },
            "unchanged": "no sentence was left out" if whole else None,
            "seconds": {
                "select": passes.began[last] - started,
                "prefill": passes.ended[last] - passes.began[last],
                "decode": time.perf_counter() - passes.ended[last],
            },
        }
