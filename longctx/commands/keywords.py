"""Settings of a benchmark as text: ``name=value`` for every keyword of its function.

Owns how text becomes a value of the keyword's type. Knows no benchmark.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longctx import plugins
from longctx.commands.settings import count
from longctx.errors import BadOption


def _truth(text: str) -> bool:
    if (said := text.lower()) not in plugins.TRUE | plugins.FALSE:
        raise ValueError("true or false")
    return said in plugins.TRUE


_READ: dict[Any, Callable[[str], Any]] = {str: str, int: count, float: float, bool: _truth, Path: Path}


def of(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of a function with their types."""
    hints = typing.get_type_hints(function)
    keywords = inspect.signature(function).parameters.values()
    return {keyword.name: hints[keyword.name] for keyword in keywords if keyword.kind is keyword.KEYWORD_ONLY}


def read(owner: str, known: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """The values of ``sets``: counts as 8k, lists of counts as 8k,16k; a list of names has one name in each of them.

    Raises BadOption for a name that ``known`` has not, a value of another type, and one that is given twice.
    """
    found: dict[str, Any] = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise BadOption(f"{owner!r} has no setting {text!r} (write name=value). Its settings: {', '.join(known)}.")
        kinds = [kind for kind in typing.get_args(known[name]) or (known[name],) if kind is not type(None)]
        listed = [kind for kind in (known[name], *kinds) if typing.get_origin(kind) is Sequence]
        kind = typing.get_args(listed[0])[0] if listed else kinds[0]
        if name in found and not (listed and kind is str):
            raise BadOption(f"{owner!r}: {name} is given twice.")
        try:
            if listed:
                parts = [value] if kind is str else value.split(",")
                found[name] = (*found.get(name, ()), *map(_READ[kind], parts))
            else:
                found[name] = _READ[kind](value)
        except ValueError as error:
            raise BadOption(f"{owner!r}: {name}={value!r} is not what it takes ({error}).") from error
    return found
