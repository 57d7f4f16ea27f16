"""What a command was told: flags over the configuration file over defaults.

Owns the keys, their types and defaults, and how counts are written. Knows no command and loads nothing heavy.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longctx import plugins
from longctx.errors import BadOption, UsageError
from longctx.room import BUDGET_TOKENS

if TYPE_CHECKING:
    from longctx.documents.limits import Limits

_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmM]?)")
_TABLE = "Mapping[str, Any]"
_FACTOR = {"": 1, "k": 1_000, "m": 1_000_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every key of ``longctx.toml``. Keys without a flag are for the file alone."""

    model: str = "embedded"
    dtype: str = "auto"
    device: str = "auto"
    selector: str = "auto"
    budget: int | None = None
    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int | None = None
    drafters: str | None = None
    controller: str = "goodput"
    kv: str = "none"
    kv_partial: bool = False
    splitter: str = "auto"
    encoder: str = "auto"
    calibration: str = "auto"
    segment_tokens: int | None = None
    segment_memory_bytes: int | None = None
    cache_bytes: int = 10_000_000_000
    limits: Mapping[str, Any] = field(default_factory=dict)

    @property
    def usual_budget(self) -> int:
        """Tokens of text to keep: those asked for, or what is kept where the window holds them."""
        return BUDGET_TOKENS if self.budget is None else self.budget

    def stack(self, usual: str = "auto") -> str:
        """The drafters, ``usual`` where none are named."""
        return usual if self.drafters is None else self.drafters

    def set_otherwise(self) -> list[str]:
        """The keys that have other values than the defaults. Drafters that are chosen automatically are none."""
        default = dataclasses.asdict(Settings(drafters="auto" if self.drafters == "auto" else None))
        return [key for key, value in dataclasses.asdict(self).items() if value != default[key]]

    def policy(self) -> str | None:
        """The KV policy by name; None where the cache is not bounded."""
        return plugins.unless_none(self.kv)

    def reading_limits(self) -> Limits:
        """What reading one file may cost. Raises BadOption for a limit that there is not or that is no number."""
        from longctx.documents.limits import Limits

        known = [field.name for field in dataclasses.fields(Limits)]
        if unknown := [name for name in self.limits if name not in known]:
            raise BadOption(f"[limits]: no key {unknown[0]!r}. Known: {', '.join(known)}.")
        return Limits(**self.limits)

    def reader_options(self) -> dict[str, Any]:
        """What ``Reader`` is made with; a key that was not given is left to the reader's own default."""
        given = {"segment_tokens": self.segment_tokens, "segment_memory_bytes": self.segment_memory_bytes}
        return {
            "splitter": self.splitter,
            "encoder": plugins.unless_none(self.encoder),
            "calibration": plugins.unless_none(self.calibration),
            **{key: value for key, value in given.items() if value is not None},
        }


def count(text: str) -> int:
    """``"2048"``, ``"4k"`` = 4,000, ``"1.5M"`` = 1,500,000; ``,`` and ``_`` may group digits. ValueError otherwise."""
    match = _COUNT.fullmatch(text.strip().replace(",", "").replace("_", ""))
    if match is None:
        raise ValueError(f"{text!r} is not a count; write 2048, 4k (4,000) or 1M (1,000,000)")
    value = float(match[1]) * _FACTOR[match[2].lower()]
    if value != int(value):
        raise ValueError(f"{text!r} is not a whole number")
    return int(value)


def merge(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Settings of ``flags`` that were given, else of the file, else the defaults.

    Raises UsageError for a file that cannot be read and BadOption for a key or value it cannot have.
    """
    values = {} if config is None else from_file(config)
    values |= {key: value for key, value in flags.items() if value is not None}
    return Settings(**values)


def from_file(path: Path) -> dict[str, Any]:
    """The keys that the file has, with values of their types. Raises as ``merge`` does."""
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"the configuration {path} cannot be read ({error.strerror or error}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the configuration {path} is not TOML: {error}") from error
    known = {field.name: str(field.type) for field in dataclasses.fields(Settings)}
    return {key: _value(path, key, value, known) for key, value in found.items()}


def _value(path: Path, key: str, value: Any, known: Mapping[str, str]) -> Any:
    if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise BadOption(f"{path}: no key {key!r}.{hint} Known: {', '.join(known)}.")
    wanted = known[key].removesuffix(" | None")
    if wanted == "int" and isinstance(value, str):
        try:
            return count(value)
        except ValueError as error:
            raise BadOption(f"{path}: {key}: {error}.") from error
    kinds: dict[str, tuple[type, ...]] = {"str": (str,), "float": (int, float), "bool": (bool,), _TABLE: (dict,)}
    if not isinstance(value, kinds.get(wanted, (int,))) or isinstance(value, bool) is not (wanted == "bool"):
        name = "a table" if wanted == _TABLE else wanted
        raise BadOption(f"{path}: {key}={value!r} is not {name}.")
    return value
