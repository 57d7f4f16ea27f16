"""The process that runs a command: what the libraries below may say, and how freed memory goes back.

Owns environment and allocator settings, which a library must never touch and a program may. Knows no command.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from pathlib import Path

_SILENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
_M_MMAP_THRESHOLD = -3
_MMAP_BYTES = 1 << 20


def prepare(verbose: bool) -> None:
    """To be called before torch or transformers is imported; ``verbose`` lets them speak."""
    if not verbose:
        for name, value in _SILENT.items():
            os.environ.setdefault(name, value)
        warnings.simplefilter("ignore")
    _return_memory()


def _return_memory() -> None:
    """Large blocks go back to the system when they are freed.

    glibc raises its threshold as blocks are freed, and batches of many shapes then leave holes: over 300 MB when
    100,000 tokens were embedded. A fixed threshold keeps what is held close to what is used.
    """
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


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
