"""One prompt to one answer: decoded with drafts, ended by the model's own stops, handed out as text while it comes.

Wiring between the loop and the reader. Knows no document and no selector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longctx import plugins, values
from longctx.backend.behind import takes_back
from longctx.backend.folding import folds
from longctx.backend.rope import turned
from longctx.backend.tokens import Tokens
from longctx.compiled import CompiledDocument
from longctx.contexts import CompressedContext, Policy
from longctx.decoding.control import Controller
from longctx.errors import LongctxError
from longctx.generated import Stats
from longctx.generation import CONTROLLER, begin, drawing
from longctx.keys import KVReport
from longctx.protocols import Progress, Selector
from longctx.saying import say
from longctx.stacks import Drafters, resolve
from longctx.types import Answer, Citation, Guarantee, Selection, Step


@dataclass(frozen=True, slots=True)
class Request:
    """What one answer was asked for; without ``budget_tokens``, the usual number of them.

    ``kv`` is None also where it was given as ``none``: the cache is not bounded.
    """

    question: str
    budget_tokens: int | None
    selector: str | Selector
    max_new_tokens: int = 0
    temperature: float = 0.0
    seed: int | None = None
    drafters: Drafters = ()
    kv: Policy | None = None
    allow_partial: bool = False  # of kv
    controller: str | Controller = CONTROLLER

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv", plugins.unless_none(self.kv))
        checked: dict[str, Any] = {
            "temperature": values.amount("temperature", self.temperature),
            "max_new_tokens": values.whole("max_new_tokens", self.max_new_tokens, 0),
        }
        for name in ("budget_tokens", "seed"):
            if (value := getattr(self, name)) is not None:
                checked[name] = values.whole(name, value)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def check(self) -> None:
        """Raises BadOption or UnknownMethod for what can be refused before any work is done."""
        values.whole("max_new_tokens", self.max_new_tokens, 1)
        resolve(self.drafters)
        plugins.resolve("controllers", self.controller)
        plugins.resolve("kv", "full" if self.kv is None else self.kv)


@dataclass(frozen=True, slots=True)
class Said:
    """An answer's text and how it was decoded; ``tokens`` leaves out the one that ended it."""

    text: str
    tokens: int = 0
    stats: Stats = Stats()
    warnings: tuple[str, ...] = ()
    lossless: bool = True
    read: KVReport | None = None  # what was read of a bounded cache

    def facts(self) -> dict[str, Any]:
        """The counts as they stand in a trace."""
        kv = {} if self.read is None else {"kv": asdict(self.read)}
        return self.stats.facts() | {"copies": [asdict(copy) for copy in self.stats.copies]} | kv

    def usage(self, document_tokens: int, selection: Selection, prompt_tokens: int) -> dict[str, int]:
        """The tokens of each step on the way to the answer."""
        return {
            "document_tokens": document_tokens,
            "selected_tokens": selection.tokens,
            "dropped_tokens": selection.dropped_tokens,
            "selection_tokens_read": selection.tokens_read,
            "prompt_tokens": prompt_tokens,
            "new_tokens": self.tokens,
        }


@contextmanager
def carrying(done: Sequence[Step]) -> Iterator[None]:
    """An error from inside carries what was ``done`` before it."""
    try:
        yield
    except LongctxError as error:
        error.trace = tuple(done)
        raise


def answer(
    model: Any,
    tokens: Tokens,
    prompt: Sequence[int],
    request: Request,
    progress: Progress | None,
    emit: Callable[[str], None],
    context: CompressedContext | None = None,
    weights: NDArray[np.float32] | None = None,
) -> Said:
    """What the model says to ``prompt``; ``emit`` gets text as soon as its characters are whole.

    ``context`` is the beginning of the prompt, already read; ``weights`` are those of its places as sources of copies.
    """
    if context is None:
        return _decoded(model, tokens, prompt, request, request.drafters, progress, emit, weights=weights)
    with context.attached(model) as cache:
        # most bounded caches verify no drafts; only those asked for by name are worth a warning
        drafters = () if request.drafters == "auto" and not takes_back(cache) else request.drafters
        said = _decoded(model, tokens, prompt, request, drafters, progress, emit, cache)
        otherwise = turned(model.config, context.tokens, len(prompt) + said.tokens)
        warnings = (*context.warnings, *said.warnings, *((otherwise,) if otherwise else ()))
        return replace(said, warnings=warnings, lossless=context.policy.lossless and not otherwise, read=cache.report())


def told(
    said: Said,
    citations: Sequence[Citation],
    selection: Selection,
    book: CompiledDocument,
    prompt_tokens: int,
    times: Sequence[float],
    promise: Guarantee,
    done: Sequence[Step],
) -> Answer:
    """The answer with what each step on the way took; ``times`` are when the first began and when each ended.

    ``done`` are the steps before the model was asked.
    """
    names = ("compile", "select", "decode", "cite")
    timings = {f"{name}_seconds": b - a for name, a, b in zip(names, times, times[1:], strict=False)}
    timings["total_seconds"] = times[-1] - times[0]
    usage = said.usage(book.tokens, selection, prompt_tokens)
    decoded = {"prompt_tokens": prompt_tokens, "spans": len(selection.as_read), **said.facts()}
    trace = (
        *done,
        Step("decode", timings["decode_seconds"], decoded),
        Step("cite", timings["cite_seconds"], {"citations": len(citations)}),
    )
    warnings = (*selection.warnings, *said.warnings)
    reasons = said.stats.finish_reasons or ("stop",)  # a model that was not asked said nothing that could be cut off
    return Answer(said.text, tuple(citations), selection, usage, timings, promise, warnings, trace, reasons[0])


def _decoded(
    model: Any,
    tokens: Tokens,
    prompt: Sequence[int],
    request: Request,
    drafters: Drafters,
    progress: Progress | None,
    emit: Callable[[str], None],
    cache: Any = None,
    weights: NDArray[np.float32] | None = None,
) -> Said:
    stops = tokens.stops(getattr(model.generation_config, "eos_token_id", None))
    rule, processors = drawing(request.temperature, request.seed)
    stack = resolve(drafters)
    decoding, warnings = begin(
        model,
        prompt,
        stack,
        rule,
        max_new_tokens=request.max_new_tokens,
        controller=request.controller,
        ends=lambda new: new[-1] in stops,
        processors=processors,
        cache=cache,
        folded=folds(tokens.tokenizer) if stack else None,
        weights=weights,
        progress=progress,
    )
    text, count = say((token for token in decoding.run() if token not in stops), tokens.decode, emit)
    return Said(text, count, decoding.stats, tuple(warnings))
