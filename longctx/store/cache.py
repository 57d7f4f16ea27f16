"""Compiled documents kept under a limit of bytes, by a key that says what each was made of; the longest unused leave.

Owns the folder, what is used how lately, and what is removed. Knows an artifact by its folder only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from longctx.errors import ArtifactError
from longctx.store import manifest
from longctx.store.folders import LOCK

SUFFIX = ".lctx"
_LEAVING = ".leaving"


@dataclass(frozen=True, slots=True)
class Kept:
    """One compiled document: its folder, the bytes of its files, when it was used (seconds since 1970), its contents.

    ``documents`` and ``model`` are empty for one that was never finished or is damaged.
    """

    path: Path
    bytes: int
    used: float
    documents: tuple[str, ...]
    model: str


class Cache:
    """The compiled documents in ``folder``, which together take at most ``limit_bytes`` after ``trim``."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    def place(self, key: str) -> Path:
        """Where the document of ``key`` is or will be."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{key}{SUFFIX}"

    def used(self, path: Path) -> None:
        """The document at ``path`` is the latest used afterwards, unless another process has just removed it."""
        with suppress(FileNotFoundError):
            os.utime(path / manifest.FILE)

    def kept(self) -> list[Kept]:
        """Everything there is, the latest used first."""
        if not self.folder.is_dir():
            return []
        found = [_look(path) for path in self.folder.iterdir() if path.suffix == SUFFIX and _is_folder(path)]
        return sorted(found, key=lambda one: (-one.used, one.path.name))

    def trim(self) -> list[Kept]:
        """What was removed, the longest unused first, so that the rest is within the limit."""
        self._sweep()
        kept = self.kept()
        total, removed = sum(one.bytes for one in kept), []
        for one in reversed(kept):
            if total <= self.limit_bytes:
                break
            if _remove(one.path):
                total -= one.bytes
                removed.append(one)
        return removed

    def clear(self) -> tuple[list[Kept], list[Kept]]:
        """What was removed, and what another process is writing and was left."""
        self._sweep()
        removed: list[Kept] = []
        busy: list[Kept] = []
        for one in self.kept():
            (removed if _remove(one.path) else busy).append(one)
        return removed, busy

    def _sweep(self) -> None:
        """Finishes what a process that was killed had begun to remove."""
        for left in self.folder.glob(f"*{_LEAVING}"):
            shutil.rmtree(left, ignore_errors=True)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _look(path: Path) -> Kept:
    names: Sequence[str] = ()
    model = ""
    try:
        held = manifest.load(path)
        names, model = [document.id for document in held.documents], held.origin.name
    except ArtifactError:  # unfinished or damaged: it takes room all the same
        pass
    sizes, used, changed = [0], [0.0], 0.0
    for entry in (path, *path.glob("*")):
        try:
            found = entry.lstat()
        except FileNotFoundError:  # another process swept it
            continue
        if entry.name == manifest.FILE:
            used.append(found.st_mtime)
        if entry == path:
            changed = found.st_mtime
        else:
            sizes.append(found.st_size)
    return Kept(path, sum(sizes), max(used) or changed, tuple(names), model)


def _remove(path: Path) -> bool:
    """Whether the artifact is gone. One that is being written stays; no other process sees half of it."""
    try:
        with FileLock(path / LOCK, timeout=0):
            leaving = path.with_suffix(f".{os.getpid()}{_LEAVING}")
            path.rename(leaving)
    except Timeout:
        return False
    except FileNotFoundError:  # another process was first
        return True
    shutil.rmtree(leaving, ignore_errors=True)  # another process may be sweeping it
    return True
