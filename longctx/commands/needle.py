"""``longctx needle``: facts hidden in long texts, with any method, the plain model or a server under test.

Owns the order of checks, what is opened for which system, and how results are shown. What is asked and what a row
holds is the pipeline's business.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx.commands import forecast
from longctx.commands.ask import check, open_reader
from longctx.commands.models import report
from longctx.commands.process import free_bytes
from longctx.commands.screen import Screen
from longctx.commands.settings import Settings, count
from longctx.errors import UsageError
from longctx.protocols import Progress

_PATIENCE_SECONDS = 10.0
_OF_ANSWERS = ("kv", "drafters")  # what answers to a selection have, and the model's own generate and servers have not


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The flags of the command as they were given."""

    lengths: str
    tasks: Sequence[str]
    depths: int
    seeds: str
    distractors: int | None
    together: bool
    haystack: Sequence[Path]
    selectors: Sequence[str]
    plain: Sequence[str]
    endpoint: str | None
    endpoint_model: str
    endpoint_timeout: float
    endpoint_retries: int
    out: Path
    dry_run: bool


def run(asked: Asked, settings: Settings, screen: Screen) -> None:
    """Make the rows that ``--out`` does not hold yet, and the table, picture and page of all it holds.

    What can be refused without the model's weights is refused before they are loaded.
    """
    needle, grids = _pipeline("needle"), _pipeline("needle_grid")
    haystacks, reports = _pipeline("haystack"), _pipeline("needle_report")
    grid = _checked(grids, asked, settings)
    reports.check(asked.out)
    tokenizer = _tokenizer(settings, screen)
    counts = haystacks.counter(tokenizer)
    servers = _servers(asked, settings, lambda text: haystacks.tokens_of(text, counts))
    haystack = haystacks.Haystack(haystacks.sources(asked.haystack), counts)
    grids.check_lengths(grid, haystack, counts)
    works = _forecast(grids, grid, asked, settings, screen)
    if asked.dry_run:
        _show_forecast(works, screen)
        return
    forecast.show(works, screen, screen.note)
    asked.out.mkdir(parents=True, exist_ok=True)
    under_test = [*_local(asked, settings, screen), *servers]
    model, named = Path(settings.model).name, haystacks.named(asked.haystack)
    common = needle.made_with(grid, model, _hash_of(tokenizer), named, haystacks.contents(asked.haystack))
    rows = needle.rows_of(asked.out, under_test, common)
    before = len(rows.rows)
    facts = {"machine": _pipeline("rows").here_and_now()["machine"]}
    try:
        needle.run(grid, under_test, haystack, counts, rows, common, facts, screen.progress)
    finally:
        if rows.rows:
            written = reports.write(asked.out, list(rows.rows.values()))
    _show(written, rows, before, screen)


def rebuild(rows: Path, row: int, haystack: Sequence[Path], whole: bool, screen: Screen) -> None:
    """Print what the system of a row was given, or the whole text with the question, after its hash was compared."""
    needle = _pipeline("needle")
    prompt, warnings = (needle.rebuild(rows, row, haystack), ()) if whole else needle.given(rows, row, haystack)
    if screen.json:
        screen.result({"row": row, "prompt": prompt, "warnings": list(warnings)})
        return
    screen.warn(warnings)
    if prompt is not None:
        screen.line(prompt)


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """The counts of a list such as ``4k,16k``. Raises UsageError for anything else."""
    try:
        return tuple(count(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{flag}: {error}.") from error


def _pipeline(name: str) -> Any:
    return importlib.import_module(f"longctx.pipelines.{name}")


def _checked(grids: Any, asked: Asked, settings: Settings) -> Any:
    """The grid, after every check that needs no file and no model."""
    grid = grids.Grid(
        tasks=tuple(asked.tasks),
        lengths=numbers("--lengths", asked.lengths),
        depths=asked.depths,
        seeds=numbers("--seeds", asked.seeds),
        distractors=asked.distractors,
        together=asked.together,
    )
    if asked.endpoint_model and asked.endpoint is None:
        raise UsageError(f"--endpoint-model {asked.endpoint_model!r} goes with --endpoint URL, which is missing.")
    if settings.temperature != 0.0:
        raise UsageError(f"temperature={settings.temperature}: needles are asked for with temperature 0 alone.")
    _check_used(asked, settings)
    for selector in asked.selectors:
        check(dataclasses.replace(settings, selector=selector))
    _pipeline("needle_systems").check_plain(asked.plain)
    names = [*asked.selectors, *asked.plain]
    if len(set(names)) < len(names):
        raise UsageError(f"a system under test is named twice: {', '.join(names)}.")
    return grid


def _check_used(asked: Asked, settings: Settings) -> None:
    """Raises UsageError for a setting that no system under test would be given."""
    if settings.seed is not None:
        raise UsageError(f"seed={settings.seed} is not for needle, whose answers are greedy; --seeds draws the facts.")
    unused = [f"{key}={getattr(settings, key)!r}" for key in settings.set_otherwise() if key in _OF_ANSWERS]
    if unused and not asked.selectors:
        raise UsageError(
            f"{' and '.join(unused)}: for a --selector, such as all; --plain and --endpoint have no such setting."
        )


def _servers(asked: Asked, settings: Settings, tokens: Callable[[str], int]) -> list[Any]:
    """The server under test, if one was named."""
    if asked.endpoint is None:
        return []
    return [
        _pipeline("endpoint").Endpoint(
            asked.endpoint,
            asked.endpoint_model,
            settings.max_new_tokens,
            tokens,
            timeout_seconds=asked.endpoint_timeout,
            retries=asked.endpoint_retries,
        )
    ]


def _local(asked: Asked, settings: Settings, screen: Screen) -> list[Any]:
    """The systems that need the model here, which is loaded once for all of them, or not at all."""
    if not asked.selectors and not asked.plain:
        return []
    systems = _pipeline("needle_systems")
    reader = open_reader(settings, screen)
    books = systems.Books(reader, _patient(screen.progress))
    reading = {name: getattr(settings, name) for name in ("splitter", "calibration", "segment_tokens")}
    reading["encoder"] = Path(settings.encoder).name  # rows never say where a file lies
    limit = settings.max_new_tokens
    how: dict[str, Any] = {"kv": settings.policy(), "drafters": settings.stack(usual="none")}
    how["allow_partial"] = settings.kv_partial
    chosen = [systems.Selecting(books, name, settings.usual_budget, limit, reading, **how) for name in asked.selectors]
    return [*(systems.Plain(reader, name, limit) for name in asked.plain), *chosen]


def _patient(report: Progress) -> Progress:
    """``report`` for stages that have taken a while: every question has several, and most are over at once."""
    began: dict[str, float] = {}

    def later(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - began.setdefault(stage, now) >= _PATIENCE_SECONDS:
            report(stage, done, total)
        if done >= total:
            del began[stage]

    return later


def _tokenizer(settings: Settings, screen: Screen) -> Any:
    from longctx.backend.model import tokenizer_alone

    return tokenizer_alone(settings.model, screen.progress)


def _hash_of(tokenizer: Any) -> str:
    """Tells one vocabulary from another."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def _forecast(grids: Any, grid: Any, asked: Asked, settings: Settings, screen: Screen) -> list[forecast.Work]:
    local = bool(asked.selectors or asked.plain)
    model = report(settings, screen) if local else None
    formats = ("", "") if model is None else (model.dtype, model.reading_dtype)
    counted = [(length, *grids.counted(grid)) for length in grid.lengths]
    named = _pipeline("needle_systems").named
    selecting = {
        named(name, settings.policy()): dataclasses.replace(settings, selector=name) for name in asked.selectors
    }
    servers = 0 if asked.endpoint is None else 1
    return forecast.forecast(
        model, counted, selecting, asked.plain, servers, settings, lambda: forecast.speed_of(*formats)
    )


def _show_forecast(works: Sequence[forecast.Work], screen: Screen) -> None:
    if screen.json:
        screen.result({"forecast": [dataclasses.asdict(work) for work in works], "free_bytes": free_bytes()})
    forecast.show(works, screen, (lambda text: None) if screen.json else screen.line)


def _show(written: Any, rows: Any, before: int, screen: Screen) -> None:
    """Means with their intervals, and where everything was written."""
    if screen.json:
        screen.result(
            {
                "rows": len(rows.rows),
                "before": before,
                "summary": [dataclasses.asdict(line) for line in written.summary],
                "files": {name: str(path) for name, path in written.files.items()},
            }
        )
        return
    for line in written.summary:
        task, system, length, count, refused, unanswered, kept, said = line.cells
        beyond = f"  {refused} beyond the window" if line.refused else ""
        silent = f"  {unanswered} without an answer" if line.unanswered else ""
        screen.line(f"{task}  {system}  {length} tokens  {count} rows  kept {kept}  said {said}{beyond}{silent}")
    screen.note(f"{len(rows.rows)} rows, {before} of them from before")
    for path in written.files.values():
        screen.line(str(path))
