"""What a caller gave, held against what is taken: one check and one message for every argument of a kind.

Knows no argument: the name comes with the value. All raise BadOption.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from os import PathLike
from pathlib import Path

from longctx.errors import BadOption


def whole(name: str, value: object, least: int | None = None) -> int:
    """``value`` where it is a whole number, and at least ``least``; also as an array or tensor of one."""
    found = _single(value)
    if not isinstance(found, Integral) or isinstance(found, bool) or (least is not None and found < least):
        bound = "" if least is None else f" of at least {least}"
        raise BadOption(f"{name}={value!r:.80} must be a whole number{bound}.")
    return int(found)


def amount(name: str, value: object) -> float:
    """``value`` where it is a finite number of 0 or more; also as an array or tensor of one."""
    one = _single(value)
    found = float(one) if isinstance(one, Real) and not isinstance(one, bool) else math.nan
    if not 0 <= found < math.inf:
        raise BadOption(f"{name}={value!r:.80} must be a finite number of 0 or more.")
    return found


def text(name: str, value: object) -> str:
    """``value`` where it is a string."""
    if not isinstance(value, str):
        raise BadOption(f"{name}={value!r:.80} must be a string.")
    return value


def place(name: str, value: object) -> Path:
    """``value`` as a path where it names one."""
    if not isinstance(value, (str, PathLike)) or not str(value):
        raise BadOption(f"{name}={value!r:.80} must be a path.")
    return Path(value)


def texts(name: str, value: object) -> tuple[str, ...]:
    """``value`` where it is a list, a set or any other row of strings, none of them empty."""
    listed = tuple(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else (None,)
    if not all(isinstance(one, str) and one for one in listed):
        raise BadOption(f"{name}={value!r:.80} must be a list of strings, none of them empty.")
    return tuple(str(one) for one in listed)


def _single(value: object) -> object:
    """What an array or tensor without dimensions holds; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
