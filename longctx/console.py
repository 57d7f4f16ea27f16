"""Progress on stderr: a bar on a terminal, plain lines otherwise. Nothing is ever written to stdout here."""

from __future__ import annotations

import sys
import time

from longctx.errors import BadOption
from longctx.protocols import Progress

_EVERY_SECONDS = 5.0  # between plain lines
_WIDTH = 24


def listener(progress: bool | Progress | None) -> Progress | None:
    """Who hears of progress: True is a bar, and False and None are nobody. Raises BadOption for what cannot hear."""
    if progress is True:
        return bar()
    if progress and not callable(progress):
        raise BadOption(f"progress={progress!r:.80} must be True, False or a function of stage, done and total.")
    return progress or None


def bar() -> Progress:
    """A progress callback of its own state; a finished stage ends its line."""
    last: dict[str, float] = {}

    def report(stage: str, done: int, total: int) -> None:
        share = done / total if total else 1.0
        now = time.monotonic()
        if sys.stderr.isatty():
            filled = round(_WIDTH * share)
            end = "\n" if done >= total else ""
            sys.stderr.write(f"\r{stage:<12} [{'#' * filled}{'.' * (_WIDTH - filled)}] {done:,}/{total:,}{end}")
            sys.stderr.flush()
        elif done >= total or now - last.setdefault(stage, now) >= _EVERY_SECONDS:
            last[stage] = now
            print(f"{stage}: {done:,} of {total:,} ({share:.0%})", file=sys.stderr, flush=True)
        if done >= total:
            last.pop(stage, None)

    return report
