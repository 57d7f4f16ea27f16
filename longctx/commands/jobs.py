"""``longctx eval`` and ``longctx bench``: whole jobs of ``longctx.pipelines``, each called by its name.

Owns which names there are. What a job does and writes is the pipeline's business.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from longctx.commands.screen import Screen
from longctx.commands.settings import Settings
from longctx.errors import UnknownMethod, UsageError

# name -> (module of longctx.pipelines, function)
_SUITES = {"selection": ("evaluate", "run_selection")}
_BENCHES = {"reading": ("bench_reading", "run_reading")}


def evaluate(suite: str, data: Path, out: Path, grid: dict[str, Any], settings: Settings, screen: Screen) -> None:
    """Run an evaluation suite on the data of a folder; rows that ``out`` holds already are not made again."""
    run = _found("suite", suite, _SUITES)
    if not data.is_dir():
        raise UsageError(f"--data {str(data)!r} is not a folder.")
    _done(run(data, settings.model, out, quiet=screen.quiet, **grid), screen)


def bench(name: str, out: Path, settings: Settings, screen: Screen) -> None:
    """Run a benchmark and append its row to ``out``."""
    _done(_found("bench", name, _BENCHES)(settings.model, out), screen)


def _found(kind: str, name: str, known: dict[str, tuple[str, str]]) -> Any:
    if name not in known:
        raise UnknownMethod(kind, name, sorted(known))
    module, function = known[name]
    return getattr(importlib.import_module(f"longctx.pipelines.{module}"), function)


def _done(path: Path, screen: Screen) -> None:
    if screen.json:
        screen.result({"out": str(path)})
    else:
        screen.line(str(path))
