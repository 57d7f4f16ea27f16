"""The loop in which a program under test answers: one JSON object a line in, one a line out.

Owns the clock and the peak of memory, so that every program is measured alike, and keeps what libraries print out of
the answers. Knows no method and nothing of longctx: peers run it with the Python of their own environment.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"  # what the kernel takes there for "begin the peak of memory anew"


class Refused(Exception):
    """A program that cannot take a model or an example, for a reason that its rows say."""


class Program(Protocol):
    """What ``load`` of a module under test gives."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What every row says of the program as it was loaded: versions, dtype, device."""
        ...

    def check(self, ids: list[int]) -> list[int] | None:
        """The likeliest token after each of ``ids``, by which two copies of a model are compared; None: not known."""
        ...

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """``text`` and what it took; see ``bench_rows``. Raises Refused."""
        ...


def main() -> None:
    """Answer the lines of standard input with the module named on the command line, until they end."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever else writes to standard output writes to the log
    module = importlib.import_module(sys.argv[1])
    program: Any = None
    for line in sys.stdin:
        asked = json.loads(line)
        given = asked["with"]
        try:
            if asked["call"] == "load":
                program, took = _timed(module.load, given)
                value: Any = {"facts": dict(program.facts), "seconds": took, "loaded_bytes": _memory("VmRSS")}
            elif asked["call"] == "check":
                value = program.check(given["ids"])
            else:
                value = measured(program.answer, given)
            reply = {"id": asked["id"], "value": value}
        except Refused as refused:
            reply = {"id": asked["id"], "refused": str(refused)}
        answers.write(json.dumps(reply, allow_nan=False) + "\n")
        answers.flush()


def measured(work: Callable[[Any], dict[str, Any]], given: Any) -> dict[str, Any]:
    """What ``work`` found, with its seconds in all and the most memory that the process had while it ran.

    ``peak_of`` is "row", or "process" where the system cannot begin the peak anew; GPU memory is counted apart.
    """
    fresh = _forget_peak()
    gpu = _gpu()
    if gpu is not None:
        gpu.reset_peak_memory_stats()
    found: dict[str, Any]
    found, took = _timed(work, given)
    found["seconds"] = {**found.get("seconds", {}), "total": took}
    found["peak_bytes"], found["peak_of"] = _memory("VmHWM"), "row" if fresh else "process"
    if gpu is not None:
        found["gpu_peak_bytes"] = int(gpu.max_memory_allocated())
    return found


def _timed(work: Callable[[Any], Any], given: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    found = work(given)
    return found, time.perf_counter() - started


def _forget_peak() -> bool:
    """Afterwards the peak of memory is what is in use now; what earlier rows freed has gone back to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        _FORGET.write_text(_FORGET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def _memory(name: str) -> int:
    """Bytes: VmRSS as they are, VmHWM at their highest."""
    if not _STATUS.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _gpu() -> Any:
    """torch's counters of the GPU that is in use; None without one."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


if __name__ == "__main__":
    main()
