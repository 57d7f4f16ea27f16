"""Finds methods by file name and makes them from a string: ``names(room)``, ``load(room, "name:option=value")``.

Owns discovery, option parsing, and the words that stand for no method. Knows no method: a plug-in is a file whose last
line is ``PLUGIN = Class`` where ``Class`` is a dataclass; its fields are its options. Listing reads file names only and
imports no method.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
import pkgutil
import typing
from typing import Any, TypeVar

from longctx.errors import BadOption, UnknownMethod

_Method = TypeVar("_Method")
# room -> (folder, what a person calls one of them)
ROOMS = {
    "splitters": "segmenters/splitters",
    "selectors": "segmenters/selectors",
    "kv": "kv",
    "drafters": "drafters",
    "needles": "pipelines/needles",
    "controllers": "decoding/controllers",
}
# room -> the words that may stand in place of a method, and what they ask for
NONE = "none"
WORDS = {
    "selectors": {"all": "Everything: the whole text, whatever the budget, where the window or a policy can hold it."},
    "kv": {NONE: "Not bounded: what `ask` does by itself."},
    "drafters": {"auto": "The default stack.", NONE: "Nothing drafted: one token after another."},
}
# room -> what is asked of an object that stands in place of a name
_ASKED = {
    "splitters": ("split", "warnings"),
    "selectors": ("baseline", "score"),
    "kv": ("lossless", "grows", "window", "slots", "shortfall", "reach", "index", "settle", "choose"),
    "drafters": ("needs", "begin"),
    "needles": ("draw",),
    "controllers": ("begin",),
}
TRUE, FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def names(room: str) -> list[str]:
    """The methods of ``room``, sorted; a file whose name begins with an underscore is not a method."""
    spec = importlib.util.find_spec(_package(room))
    folders = (spec.submodule_search_locations if spec else None) or []
    return sorted(info.name for info in pkgutil.iter_modules(folders) if not info.name.startswith("_"))


def known(room: str) -> list[str]:
    """All that may be named where a method of ``room`` is: its methods, and the words that stand for none of them."""
    return [*names(room), *WORDS.get(room, ())]


def unless_none(method: _Method) -> _Method | None:
    """``method``, or None for the word ``none``."""
    return None if isinstance(method, str) and method == NONE else method


def plugin(room: str, name: str) -> Any:
    """The class behind ``name``. Raises UnknownMethod naming the known ones, and BadOption for a word of no method."""
    if name in WORDS.get(room, ()):
        raise BadOption(f"{name!r} stands for no method, and one is needed here: {', '.join(names(room))}.")
    if name not in names(room):
        raise UnknownMethod(room.removesuffix("s"), name, known(room))
    return importlib.import_module(f"{_package(room)}.{name}").PLUGIN


def options(room: str, name: str) -> dict[str, tuple[str, Any]]:
    """The options of a method: name -> (type as text, default)."""
    found = {}
    for f in dataclasses.fields(plugin(room, name)):
        if f.init and not f.name.startswith("_"):
            found[f.name] = (str(f.type), f.default)
    return found


def load(room: str, spec: str) -> Any:
    """A method object from ``"name"`` or ``"name:option=value,option=value"``.

    Raises UnknownMethod for an unknown name and BadOption for an unknown option or a value of the wrong type.
    """
    name, _, rest = spec.partition(":")
    cls = plugin(room, name)
    types = typing.get_type_hints(cls)
    known = options(room, name)
    values: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in rest.split(","))):
        key, equals, raw = part.partition("=")
        key = key.strip()
        if not equals or key not in known:
            listed = ", ".join(known) or "none"
            raise BadOption(f"{name!r} has no option {key!r} (write option=value). Its options: {listed}.")
        if key in values:
            raise BadOption(f"{name!r}: option {key!r} is given twice.")
        values[key] = _convert(name, key, raw.strip(), types[key])
    try:
        return cls(**values)
    except ValueError as error:
        raise BadOption(f"{name!r}: {error}") from error


def resolve(room: str, method: Any) -> Any:
    """A method named by a string is loaded; an object is passed through unchanged.

    Raises as ``load`` does, and BadOption for what is neither a name nor an object that can be asked what is asked.
    """
    if isinstance(method, str):
        return load(room, method)
    # the one door where an object of the caller's own is looked at: behind it nobody asks again
    if isinstance(method, type) or not all(hasattr(method, asked) for asked in _ASKED[room]):
        raise BadOption(
            f"{room.removesuffix('s')}={method!r:.80} must be a name ({', '.join(known(room))}) or an object with "
            f"{', '.join(_ASKED[room])}."
        )
    if dataclasses.is_dataclass(method):
        _check_words(method)
    return method


def _check_words(method: Any) -> None:
    """Raises BadOption for a word that is none of those an option takes: any other would stand for one of them."""
    try:
        hints = typing.get_type_hints(type(method))
    except (NameError, AttributeError):  # of somebody's own, with names that are known elsewhere only
        return
    for key, wanted in hints.items():
        choices = typing.get_args(wanted) if typing.get_origin(wanted) is typing.Literal else ()
        if choices and (given := getattr(method, key, choices[0])) not in choices:
            raise BadOption(f"{type(method).__name__}: {key}={given!r} is not one of {', '.join(map(str, choices))}.")


def _package(room: str) -> str:
    return f"longctx.{ROOMS[room].replace('/', '.')}"


def _convert(name: str, key: str, raw: str, wanted: Any) -> Any:
    """``raw`` as the annotated type of a plug-in's field."""
    choices = typing.get_args(wanted) if typing.get_origin(wanted) is typing.Literal else ()
    if choices:
        if raw not in choices:
            raise BadOption(f"{name!r}: {key}={raw!r} is not one of {', '.join(map(str, choices))}.")
        return raw
    kinds = [kind for kind in (typing.get_args(wanted) or (wanted,))]
    if type(None) in kinds and raw.lower() in ("none", ""):
        return None
    for kind in kinds:
        if kind is bool and raw.lower() in TRUE | FALSE:
            return raw.lower() in TRUE
        if kind in (int, float):
            try:
                found = kind(raw)
            except ValueError:
                continue
            if isinstance(found, float) and not math.isfinite(found):
                raise BadOption(f"{name!r}: {key}={raw!r} is not a finite number.")
            return found
        if kind is str:
            return raw
    expected = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise BadOption(f"{name!r}: {key}={raw!r} is not {expected}.")
