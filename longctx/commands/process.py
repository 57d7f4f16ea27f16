"""The process that runs a command: what the libraries below may say, and how freed memory goes back.

Owns environment and allocator settings, which a library must never touch and a program may. Knows no command.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
import warnings
from pathlib import Path

from longctx.protocols import Progress

_SILENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
_TRIM_SECONDS = 1.0


def prepare(verbose: bool) -> None:
    """To be called before torch or transformers is imported; ``verbose`` lets them speak."""
    if not verbose:
        for name, value in _SILENT.items():
            os.environ.setdefault(name, value)
        warnings.simplefilter("ignore")


def trimming(progress: Progress | None) -> Progress:
    """``progress``, and once a second freed memory goes back to the system.

    glibc keeps what was freed between blocks still in use, and batches of many shapes leave many such holes: over
    200 MB when 100,000 tokens are embedded. Handing them back costs milliseconds; giving each block a mapping of its
    own (mallopt) cost a third more processor time.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    last = time.monotonic()

    def report(stage: str, done: int, total: int) -> None:
        nonlocal last
        if trim is not None and time.monotonic() - last >= _TRIM_SECONDS:
            trim(0)
            last = time.monotonic()
        if progress is not None:
            progress(stage, done, total)

    return report


def free_bytes() -> int | None:
    """Memory this process can still take: the system's, or less where its control group has a limit. None: unknown."""
    found = [value for value in (_available(), _allowed()) if value is not None]
    return min(found) if found else None


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
        if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names):
            return None
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _allowed() -> int | None:
    """What the control group leaves, where there is one with a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        cache = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    reclaimable = sum(int(line.split()[1]) for line in cache if line.startswith(("inactive_file ", "active_file ")))
    return max(0, int(limit) - used + reclaimable)
