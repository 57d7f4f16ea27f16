"""One prompt to one answer: decoded with drafts, ended by the model's own stops, handed out as text while it comes.

Wiring between the loop and the reader. Knows no document and no selector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from longctx.backend.tokens import Tokens
from longctx.drafts import Stats
from longctx.generation import Drafters, begin, drawing, resolve
from longctx.protocols import Progress, Selector
from longctx.saying import say


@dataclass(frozen=True, slots=True)
class Request:
    """What one answer was asked for."""

    question: str
    budget_tokens: int
    selector: str | Selector
    max_new_tokens: int = 0
    temperature: float = 0.0
    seed: int | None = None
    drafters: Drafters = ()


@dataclass(frozen=True, slots=True)
class Said:
    """An answer's text and how it was decoded; ``tokens`` leaves out the one that ended it."""

    text: str
    tokens: int = 0
    stats: Stats = Stats()
    warnings: tuple[str, ...] = ()


def answer(
    model: Any,
    tokens: Tokens,
    prompt: Sequence[int],
    request: Request,
    progress: Progress | None,
    emit: Callable[[str], None],
) -> Said:
    """What the model says to ``prompt``; ``emit`` gets text as soon as its characters are whole."""
    stops = tokens.stops(getattr(model.generation_config, "eos_token_id", None))
    rule, processors = drawing(request.temperature, request.seed)
    decoding, warnings = begin(
        model,
        prompt,
        resolve(request.drafters),
        rule,
        max_new_tokens=request.max_new_tokens,
        ends=lambda new: new[-1] in stops,
        processors=processors,
        progress=progress,
    )
    text, count = say((token for token in decoding.run() if token not in stops), tokens.decode, emit)
    return Said(text, count, decoding.stats, warnings)
