"""The TOML file of a grid: which models, methods, needles and suites, and with what limits.

Owns the keys, their types and defaults, and that paths stand relative to the file. Loads nothing heavy; methods and
tasks are checked by name.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx.errors import BadOption, UsageError

from .bench_methods import Method, methods
from .needle_grid import Grid as Needles

_FACTOR = {"k": 1_000, "M": 1_000_000}
# table -> key -> what it must be; a count may be written as 4k or 1M
_KEYS: dict[str, dict[str, str]] = {
    "grid": {
        "models": "list", "methods": "list", "budgets": "counts", "dtype": "text", "device": "text", "threads": "count",
        "max_new_tokens": "count", "time_limit": "count", "keep_answers": "switch",
    },
    "needle": {
        "task": "text", "lengths": "counts", "depths": "count", "seeds": "counts", "distractors": "count",
        "together": "switch", "haystack": "list",
    },
    "suite": {"suite": "text", "data": "text", "sample": "count", "seed": "count"},
}  # fmt: skip
# read by programs of several kinds, each of which would be started to say that it knows no other
_WRITTEN = {"dtype": r"auto|float32|bfloat16|float16", "device": r"auto|cpu|mps|cuda(:\d+)?"}
_NEEDED = {"grid": ("methods",), "needle": ("task", "lengths"), "suite": ("suite", "data")}


@dataclass(frozen=True, slots=True)
class NeedleTask:
    """A kind of needle with its lengths, depths and seeds; ``haystack`` empty: Python's own documentation."""

    grid: Needles
    haystack: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class SuiteTask:
    """``sample`` questions of a suite for long question answering, drawn by ``seed`` from the rows in ``data``."""

    suite: str
    data: Path
    sample: int
    seed: int


@dataclass(frozen=True, slots=True)
class GridFile:
    """``models`` are folders or "embedded"; none: the one of the command line. ``time_limit`` is seconds a question.

    ``keep_answers`` keeps what was said as text in the rows, which may quote the data. ``threads`` 0: torch's default.
    """

    name: str
    models: tuple[str, ...]
    methods: tuple[Method, ...]
    needles: tuple[NeedleTask, ...]
    suites: tuple[SuiteTask, ...]
    dtype: str = "auto"
    device: str = "auto"
    threads: int = 0
    max_new_tokens: int = 64
    time_limit: int = 1800
    keep_answers: bool = False


def read(path: Path) -> GridFile:
    """The grid of a file. Raises UsageError for no TOML and BadOption naming table and key for what cannot be meant."""
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"the grid {path} cannot be read ({error.strerror or error}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the grid {path} is not TOML: {error}") from error
    _known(path.name, "", found, _KEYS)
    tables = {name: _tables(path.name, name, found) for name in _KEYS}
    if len(tables["grid"]) != 1:
        raise BadOption(f"{path.name}: there must be one table [grid], and there are {len(tables['grid'])}.")
    if not tables["needle"] and not tables["suite"]:
        raise BadOption(f"{path.name}: nothing is asked. Add a table [[needle]] or [[suite]].")
    grid = tables["grid"][0]
    here = path.absolute().parent
    budgets = grid.pop("budgets", ())
    chosen = methods([_text(path.name, "methods", spec) for spec in grid.pop("methods")], budgets, here)
    needles = tuple(_needle(path.name, here, table) for table in tables["needle"])
    suites = tuple(_suite(path.name, here, table) for table in tables["suite"])
    models = tuple(_model(path.name, here, name) for name in grid.pop("models", ()))
    for name, value in (("max_new_tokens", grid.get("max_new_tokens", 1)), ("time_limit", grid.get("time_limit", 1))):
        if value < 1:
            raise BadOption(f"{path.name}: {name}={value} must be at least 1.")
    for name, pattern in _WRITTEN.items():
        if not re.fullmatch(pattern, grid.get(name, "auto")):
            known = pattern.replace("|", ", ").replace(r"(:\d+)?", " or cuda:1")
            raise BadOption(f"{path.name}: {name}={grid[name]!r} is not one of {known}.")
    _once(path.name, "models", [Path(model).name for model in models])
    _once(path.name, "needle tasks", [task.grid.tasks[0] for task in needles])
    _once(path.name, "suites", [task.suite for task in suites])
    return GridFile(path.stem, models, chosen, needles, suites, **grid)


def _needle(file: str, here: Path, table: dict[str, Any]) -> NeedleTask:
    haystack = tuple(here / Path(_text(file, "haystack", part)).expanduser() for part in table.pop("haystack", ()))
    for part in haystack:
        if not part.exists():
            raise UsageError(f"{file}: the haystack {part} is not there.")
    return NeedleTask(Needles(tasks=(table.pop("task"),), **table), haystack)


def _suite(file: str, here: Path, table: dict[str, Any]) -> SuiteTask:
    data = here / Path(table["data"]).expanduser()
    if table.get("sample", 1) < 1:
        raise BadOption(f"{file}: sample={table['sample']} must be at least 1.")
    return SuiteTask(table["suite"], data, table.get("sample", 20), table.get("seed", 7))


def _model(file: str, here: Path, name: Any) -> str:
    """A folder stands relative to the file; the embedded model has a name."""
    text = _text(file, "models", name)
    return text if text == "embedded" else str(here / Path(text).expanduser())


def _tables(file: str, name: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables of one name with checked keys and values."""
    written = found.get(name, [])
    tables = written if isinstance(written, list) else [written]
    made = []
    for table in tables:
        if not isinstance(table, dict):
            raise BadOption(f"{file}: {name!r} must be a table, as in [{name}] or [[{name}]].")
        _known(file, f"[{name}] ", table, _KEYS[name])
        if missing := [key for key in _NEEDED[name] if not table.get(key)]:
            raise BadOption(f"{file}: [{name}] lacks {', '.join(missing)}.")
        made.append({key: _value(file, f"[{name}] {key}", _KEYS[name][key], value) for key, value in table.items()})
    return made


def _known(file: str, where: str, found: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise BadOption(f"{file}: {where}no key {key!r}.{hint} Known: {', '.join(known)}.")


def _value(file: str, key: str, wanted: str, value: Any) -> Any:
    """``value`` as its key wants it."""
    if wanted == "counts" and isinstance(value, list):
        return tuple(_count(file, key, each) for each in value)
    if wanted == "count":
        return _count(file, key, value)
    kinds = {"list": list, "text": str, "switch": bool, "counts": list}
    if not isinstance(value, kinds[wanted]):
        raise BadOption(f"{file}: {key}={value!r} is no {wanted}.")
    return value


def _count(file: str, key: str, value: Any) -> int:
    """A number not below 0, or one written as ``4k`` (4,000) or ``1M`` (1,000,000)."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str):
        number, factor = (value[:-1], _FACTOR[value[-1:]]) if value[-1:] in _FACTOR else (value, 1)
        if number.isascii() and number.isdigit():
            return int(number) * factor
    raise BadOption(f'{file}: {key}={value!r} is no count; write 2048, "4k" (4,000) or "1M" (1,000,000).')


def _text(file: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadOption(f"{file}: {key} holds {value!r} where a text is expected.")
    return value.strip()


def _once(file: str, what: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise BadOption(f"{file}: {what} of the same name would share their rows: {', '.join(sorted(names))}.")
