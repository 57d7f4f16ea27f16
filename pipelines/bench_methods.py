"""The methods of a grid by their names: ``selector:…``, ``kv:…``, ``drafters:…``, ``hf:…`` and ``peer:…``.

Owns how they are written, which options they have, and what a row calls them. Knows no model and no task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longctx import plugins
from longctx.errors import BadOption, UnknownMethod, UsageError

from . import bench_peers

KINDS = ("selector", "kv", "drafters", "hf", "peer")
# what Hugging Face's own generate is called with; the first option may be written without its name
HF: dict[str, dict[str, Any]] = {
    "full": {},
    "truncated": {},
    "prompt_lookup": {"tokens": 10, "ngram": 2},
    "assisted": {"model": ""},
}
_HF_FILES: tuple[str, ...] = ("model",)
_FILES = {*_HF_FILES, "gguf"}  # options that name a file, of any method


@dataclass(frozen=True, slots=True)
class Method:
    """``name`` is what rows call it: files by their names, never where they lie. ``options`` are what it is run with.

    ``spec`` is the method without its kind and, of hf and peer, without options. ``budget``: tokens of a selector.
    """

    name: str
    kind: str
    spec: str
    budget: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def methods(specs: Sequence[str], budgets: Sequence[int], here: Path) -> tuple[Method, ...]:
    """Every method as written, selectors once for each budget; files of options stand relative to ``here``.

    Raises UnknownMethod, BadOption or UsageError for what is none.
    """
    found: list[Method] = []
    for spec in specs:
        kind, _, rest = spec.partition(":")
        if kind not in KINDS or not rest:
            raise UsageError(f"the method {spec!r} must be written as {', '.join(f'{k}:NAME' for k in KINDS)}.")
        if kind == "selector":
            plugins.load("selectors", rest)
            if not budgets or min(budgets) < 1:
                raise BadOption(f'{spec!r} needs budgets of at least 1 token: add budgets = ["1k"] to [grid].')
            found += [Method(spec, kind, rest, budget) for budget in budgets]
        elif kind == "kv":
            plugins.load("kv", rest)
            found.append(Method(spec, kind, rest))
        elif kind == "drafters":
            for name in () if rest == "auto" else rest.split("+"):
                plugins.load("drafters", name)
            found.append(Method(spec, kind, rest))
        else:
            found.append(_with_options(spec, kind, rest, here))
    places = [(method.name, method.budget) for method in found]
    if len(set(places)) < len(places):
        raise BadOption(f"a method is named twice: {', '.join(specs)}.")
    return tuple(found)


def _with_options(spec: str, kind: str, rest: str, here: Path) -> Method:
    name, *parts = rest.split(":")
    if kind == "hf":
        if name not in HF:
            raise UnknownMethod("method of hf", name, list(HF))
        known, files = HF[name], _HF_FILES
    else:
        peer = bench_peers.peer(name)
        known, files = peer.options, peer.files
    options, said = dict(known), [name]
    for place, part in enumerate(",".join(parts).split(",") if parts else []):
        key, equals, raw = part.partition("=")
        if not equals and place == 0 and known:
            key, raw = next(iter(known)), part
        if key not in known:
            listed = ", ".join(known) or "none"
            raise BadOption(f"{spec!r} has no option {key!r} (write option=value). Its options: {listed}.")
        options[key] = _converted(spec, key, raw, known[key])
        if key in files and raw != "embedded":
            options[key] = str(here / Path(raw).expanduser())
            raw = Path(raw).name
        said.append(f"{key}={raw}" if equals else raw)
    if kind == "hf" and name == "assisted" and not options["model"]:
        raise BadOption(f"{spec!r} names no assistant: write hf:assisted:model=FOLDER.")
    return Method(f"{kind}:{':'.join(said)}", kind, name, None, options)


def _converted(spec: str, key: str, raw: str, default: Any) -> Any:
    """``raw`` as a value of the default's type."""
    if isinstance(default, bool):
        if raw.lower() not in ("true", "false"):
            raise BadOption(f"{spec!r}: {key}={raw!r} is neither true nor false.")
        return raw.lower() == "true"
    try:
        return type(default)(raw)
    except ValueError as error:
        raise BadOption(f"{spec!r}: {key}={raw!r} is no {type(default).__name__}.") from error


def check_files(chosen: Sequence[Method]) -> None:
    """Raises UsageError for a file of an option that is not there."""
    for method in chosen:
        for key in _FILES & set(method.options):
            place = method.options[key]
            if place not in ("", "embedded") and not Path(place).exists():
                raise UsageError(f"{method.name}: {key}={place} is not there. Paths stand relative to the grid's file.")


def settings(method: Method) -> dict[str, Any]:
    """What a row's ``made_with`` says of the method."""
    options = {key: Path(value).name if key in _FILES else value for key, value in method.options.items()}
    return dataclasses.asdict(method) | {"options": options}
