"""Frozen nouns in JSON's own types: what ``as_dict`` returns and the command line prints.

Owns that one translation. Knows no noun by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np


def jsonable(noun: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a dataclass by name but those ``without``, at any depth; numbers of numpy are Python's."""
    return {f.name: _value(getattr(noun, f.name), without) for f in fields(noun) if f.name not in without}


def _value(value: Any, without: tuple[str, ...]) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return jsonable(value, without)
    if isinstance(value, Mapping):
        return {str(key): _value(item, without) for key, item in value.items()}
    if isinstance(value, (list, tuple, Iterator)):
        return [_value(item, without) for item in value]
    found = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(found, float) and not math.isfinite(found) else found  # JSON has no infinity
