"""What was tried on this processor, kept from one process to the next.

Owns the small files in the cache folder and what they hold for: a processor, a release of the library that multiplies,
a number of threads. Ways to multiply add in orders of their own, so that in formats of 16 bits a process that decided
anew could say other words than the last one; and every trial costs a moment. A trial has one file for what was found
at rest, and until then one for what was found on a busy machine. Knows no trial.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from longctx.backend.places import cache_folder, put
from longctx.backend.trial import at_rest, calmly

Found = TypeVar("Found")
_FORMAT = 1  # to be raised when what a trial holds against what changes
_AGAIN = 600.0  # seconds until a process looks again whether the machine is at rest: busy, trials take half a minute
UNREAD = (ValueError, KeyError, TypeError, OverflowError, RecursionError)  # of what is not what was written
_TELLING = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "CPU part")


def kept(trial: str, about: str, attempt: Callable[[], Any], read: Callable[[Any], Found]) -> Found:
    """What ``attempt`` found when ``trial`` was first made here ``about`` this, as ``read`` understands it.

    ``attempt`` gives what JSON can hold. Of processes that try at the same time the first to be done is heard. A file
    that is damaged or that ``read`` raises one of ``UNREAD`` for counts as none. What was found while the machine was
    busy holds until it is at rest: once in a while a process looks whether it is, and tries again. Where the folder
    cannot be written every process tries.
    """
    key = "; ".join((trial, about, f"{torch.get_num_threads()} threads", *_here()))
    for_good = cache_folder() / "trials" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    meanwhile = for_good.with_suffix(".busy.json")
    known = _load(for_good, key, read)
    if known is None and (known := _load(meanwhile, key, read)) is not None and _aged(meanwhile) and at_rest():
        known = None
    if known is not None:
        return known[0]
    made, calm = calmly(attempt)
    path = for_good if calm else meanwhile
    known = _load(for_good, key, read) or _load(path, key, read)
    if known is None:
        with suppress(OSError):  # the next process finds it again
            put(path, json.dumps({"of": key, "found": made}).encode(), first=not path.exists())
        known = _load(path, key, read)
    with suppress(OSError):
        if calm:
            meanwhile.unlink(missing_ok=True)
        else:
            os.utime(meanwhile)
    return read(made) if known is None else known[0]


def _aged(file: Path) -> bool:
    """Whether it was long ago that somebody tried and found the machine busy."""
    try:
        return not 0 <= time.time() - file.stat().st_mtime < _AGAIN
    except OSError:
        return True


def taken(seconds: Any) -> float:
    """What a trial took, as it was read. Raises ValueError for what is no time."""
    if not isinstance(seconds, float) or not 0 < seconds < math.inf:
        raise ValueError(f"{seconds!r} is no time")
    return seconds


def said(found: Any) -> bool:
    """What a trial decided, as it was read. Raises ValueError for what is neither yes nor no."""
    if found is not True and found is not False:
        raise ValueError(f"{found!r} is neither yes nor no")
    return bool(found)


def _load(path: Path, key: str, read: Callable[[Any], Found]) -> tuple[Found] | None:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return (read(held["found"]),) if held["of"] == key else None
    except (OSError, *UNREAD):
        return None


@functools.cache  # a fact about the processor
def _here(about: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """What decides which way is the fastest, besides the work: two processors of one name differ by what they can."""
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines() if about.is_file() else []
    first = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    processor = [f"{name} {first[name]}" for name in _TELLING if name in first]
    return (
        f"format {_FORMAT}",
        f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}",
        f"{platform.system()} {platform.machine()} {platform.processor()}",
        *processor,
    )
