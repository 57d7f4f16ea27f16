"""``longctx generate``: a prompt in, what the model says to it out, decoded with drafts.

Owns the order of checks and how the result is shown.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from longctx.commands.ask import check_drafters, read_documents
from longctx.commands.screen import Screen
from longctx.commands.settings import Settings
from longctx.errors import DoesNotFit, EmptyInput, UsageError


def generate(prompt: Path, document: Path | None, stop: Sequence[str], settings: Settings, screen: Screen) -> None:
    """What is wrong with the files or the names is raised before a model is loaded.

    Raises DoesNotFit for a prompt that passes the model's window: it would be read for hours, and the answer worthless.
    """
    check_drafters(settings)
    text = _read(prompt)
    copied = read_documents([str(document)], settings)[0] if document is not None else None
    from longctx.backend.model import from_pretrained
    from longctx.backend.tokens import Tokens
    from longctx.generation import generate as run

    loaded = from_pretrained(settings.model, settings.dtype, settings.device, screen.progress)
    ids = Tokens(loaded.tokenizer).turn(text)
    if len(ids) + settings.max_new_tokens > loaded.window:
        raise DoesNotFit(
            f"the prompt {prompt} has {len(ids)} tokens and {settings.max_new_tokens} new ones are asked for, but the "
            f"model's window is {loaded.window}. Shorten it, lower --max-new-tokens, or let `longctx ask {prompt} "
            f'"QUESTION"` find what matters in it.'
        )
    started = time.perf_counter()
    made = run(
        loaded.model,
        loaded.tokenizer,
        ids,
        drafters=settings.stack(),
        controller=settings.controller,
        document=copied,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        stop=stop,
    )
    seconds = time.perf_counter() - started
    if screen.json:
        screen.result({**made.as_dict(), "seconds": round(seconds, 3)})
        return
    screen.line(made.text.strip())
    stats = made.stats
    screen.note(
        f"{stats.tokens} tokens in {stats.rounds} rounds ({stats.tokens_per_round:.1f} each) | accepted "
        f"{stats.accepted} of {stats.drafted} drafted | guarantee: {made.guarantee} | {seconds:.1f} s"
    )
    if "length" in made.finish_reasons:
        screen.note(f"cut off after {stats.tokens} tokens: --max-new-tokens lets it go on")
    if stats.copies:
        tokens = sum(copy.tokens for copy in stats.copies)
        screen.note(f"{tokens} tokens copied from {len(stats.copies)} places of {document}: --json says which")
    screen.warn(made.warnings)


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise UsageError(f"the prompt {path} cannot be read ({error.strerror or error}).") from error
    if not text.strip():
        raise EmptyInput(f"the prompt {path} is empty.")
    return text
