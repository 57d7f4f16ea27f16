"""``longctx eval`` and ``longctx bench``: whole jobs of ``longctx.pipelines``, each called by its name.

Owns which names there are. What a job does and writes is the pipeline's business.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longctx.commands import bench_grid, keywords
from longctx.commands.ask import check, open_reader
from longctx.commands.screen import Screen
from longctx.commands.settings import Settings
from longctx.errors import BadOption, UnknownMethod, UsageError

_SELECTION = "selection"
# name -> (module of longctx.pipelines, function)
_BENCHES = {
    "compiled": ("bench_compiled", "run_compiled"),
    "copies": ("bench_copies", "run_copies"),
    "kv": ("bench_kv", "run_kv"),
    "reading": ("bench_reading", "run_reading"),
    "speculation": ("bench_speculation", "run_speculation"),
}
_FOLDERS = {"kv"}  # benchmarks whose data is a folder
# Settings that rows name by themselves, that an evaluation has no use for, or that change what is kept alone.
_NOT_WRITTEN = (
    "selector",
    "budget",
    "max_new_tokens",
    "temperature",
    "seed",
    "drafters",
    "controller",
    "kv",
    "kv_partial",
    "segment_memory_bytes",
    "limits",
)


# What an evaluation of answers makes of a configuration; a selector has a warning of its own.
_USED = (
    "model",
    "dtype",
    "device",
    "selector",
    "splitter",
    "encoder",
    "calibration",
    "segment_tokens",
    "segment_memory_bytes",
    "temperature",
    "budget",
    "max_new_tokens",
    "seed",
)


def list_suites(screen: Screen) -> None:
    """Name every suite of ``longctx eval``, a line each."""
    if screen.json:
        screen.result({"suites": _suites()})
        return
    for name in _suites():
        screen.line(name)


def evaluate(
    suite: str, data: Path, out: Path, sample: int, grid: dict[str, Any], settings: Settings, screen: Screen
) -> None:
    """Run an evaluation suite on the data of a folder; rows that ``out`` holds already are not made again."""
    if suite not in _suites():
        raise UnknownMethod("suite", suite, _suites())
    if not data.is_dir():
        raise UsageError(f"--data {str(data)!r} is not a folder.")
    if suite == _SELECTION:
        _say_unused(settings, ("model",), screen)
        run = _pipeline("evaluate").run_selection
        _done(run(data, settings.model, out, quiet=screen.quiet, sample=sample, **grid), screen)
        return
    check(settings)
    if settings.temperature:
        raise BadOption(f"temperature={settings.temperature} is not for eval, whose answers are greedy. Leave it out.")
    if settings.selector != Settings().selector and "systems" not in grid:
        screen.warn([f"selector={settings.selector!r} of the configuration is not used: name it with --system."])
    _say_unused(settings, _USED, screen)
    written = {name: value for name, value in dataclasses.asdict(settings).items() if name not in _NOT_WRITTEN}
    dry = grid.pop("dry_run", False)
    job = _pipeline("long_qa").Job(suite, data, out, written, sample=sample, **grid)
    if dry:
        _estimate(job, settings, screen)
    else:
        _done(job.run(lambda: open_reader(settings, screen), screen.progress), screen)


def bench(
    name: str, out: Path, data: Path | None, settings: Settings, screen: Screen, sets: Sequence[str] = ()
) -> None:
    """Run a benchmark, or the grid of a TOML file, and append its rows to ``out``.

    ``sets`` are settings of a benchmark's own, as "name=value". Raises UsageError for data that it has no use for and
    BadOption for a setting that it does not have.
    """
    _say_unused(settings, ("model",), screen)
    if name.endswith(".toml"):
        if data is not None or sets:
            raise UsageError("a grid names its own data and settings; it takes no --data and no --set.")
        _done(bench_grid.run(Path(name), out, settings, screen), screen)
        return
    if name not in _BENCHES:
        raise UnknownMethod("bench", name, sorted(_BENCHES))
    module, function = _BENCHES[name]
    run = getattr(_pipeline(module), function)
    known = keywords.of(run)
    if data is not None and "data" not in known:
        raise UsageError(f"the benchmark {name!r} takes no --data.")
    if data is not None and not (data.is_dir() if name in _FOLDERS else data.is_file()):
        raise UsageError(f"--data {str(data)!r} is not a {'folder' if name in _FOLDERS else 'file'}.")
    given = keywords.read(name, known, sets)
    if data is not None:
        given["data"] = data
    _done(run(settings.model, out, **given), screen)


def _say_unused(settings: Settings, used: Sequence[str], screen: Screen) -> None:
    """Warn of what a configuration says and this job has no use for."""
    if unused := [name for name in settings.set_otherwise() if name not in used]:
        screen.warn([f"not used here, though the configuration has it: {', '.join(unused)}."])


def _suites() -> list[str]:
    return [_SELECTION, *_pipeline("long_qa").suites()]


def _pipeline(module: str) -> Any:
    return importlib.import_module(f"longctx.pipelines.{module}")


def _estimate(job: Any, settings: Settings, screen: Screen) -> None:
    """What the job would take, measured on a piece of its first document."""
    found = dataclasses.asdict(_pipeline("long_qa_estimate").estimate(job, open_reader(settings, screen)))
    if screen.json:
        screen.result(found)
    else:
        screen.table([(name.replace("_", " "), f"{value:,.0f}") for name, value in found.items()])


def _done(path: Path, screen: Screen) -> None:
    if screen.json:
        screen.result({"out": str(path)})
    else:
        screen.line(str(path))
