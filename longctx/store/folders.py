"""A folder that exists by one file of it and is changed by one process at a time.

Owns its place, its lock, whose a name in it is, what is swept away and what a full disk is to the user. Knows neither
what the files hold nor in which order they are written.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from longctx.errors import ArtifactBusy, DoesNotFit, UsageError
from longctx.store import files

LOCK = ".lock"
WAIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What people call such a folder, the file by which it exists, and how the names of its stored files begin.

    ``names`` are those of what else only such a folder has.
    """

    words: str
    file: str
    begins: tuple[str, ...]
    names: re.Pattern[str] = files.NAME

    def owns(self, name: str) -> bool:
        """Whether only a folder of this kind has a file of that name."""
        stem = name.removesuffix(files.DAMAGED)
        part = stem.endswith(files.PART) and stem.startswith((self.file, *self.begins))
        return stem in (LOCK, self.file) or part or any(kind.fullmatch(stem) for kind in (files.NAME, self.names))


def check(folder: Path, kind: Kind) -> None:
    """Raises UsageError for a place where no such folder can be: a file, a folder of other things, no parent."""
    if not folder.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {str(folder.absolute().parent)!r} for {folder.name!r}.")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{str(folder)!r} is a file; {kind.words} is a folder. Name another place.")
    names = {path.name for path in folder.iterdir()}
    if kind.file not in names and (others := sorted(name for name in names if not kind.owns(name))):
        raise UsageError(
            f"{str(folder)!r} holds other files ({others[0]!r:.80}) and is left alone. Name a place of its own."
        )


@contextmanager
def held(folder: Path, kind: Kind, wait_seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Inside, ``folder`` is there and no other process changes it. Where nothing came of it, it is as it was before.

    Raises UsageError as ``check`` does, and ArtifactBusy where another process has been at it for ``wait_seconds``.
    """
    check(folder, kind)
    there = folder.exists()
    with _locked(folder, wait_seconds):
        try:
            yield
        finally:
            with suppress(OSError):  # in use elsewhere: an empty folder may stay
                if {path.name for path in folder.iterdir()} == {LOCK}:
                    (folder / LOCK).unlink()
                    if not there:
                        folder.rmdir()


@contextmanager
def _locked(folder: Path, wait_seconds: float) -> Iterator[None]:
    lock, there = FileLock(folder / LOCK), folder.exists()
    while not lock.is_locked:
        folder.mkdir(exist_ok=True)
        try:
            files.sync(folder.absolute().parent)
            lock.acquire(timeout=wait_seconds)
        except FileNotFoundError:  # nothing came of what another process did, and the folder went with it
            continue
        except Timeout as error:
            raise ArtifactBusy(
                f"another process has been writing {folder} for the {wait_seconds:.0f} s that were waited for it. Try "
                f"again when it is done, or name another place."
            ) from error
        except OSError:
            with suppress(OSError):  # only an empty folder can go so
                if not there:
                    folder.rmdir()
            raise
    try:
        yield
    finally:
        lock.release()


@contextmanager
def fitting(folder: Path, needed: Callable[[], int]) -> Iterator[None]:
    """A full disk inside becomes DoesNotFit, with the bytes that ``needed`` counts and those that are free."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
        takes = needed()
        needs = f"it takes about {takes:,} bytes, and" if takes else "it takes more bytes than there are:"
        raise DoesNotFit(
            f"{str(folder)!r} cannot be written whole ({error.strerror}): {needs} "
            f"{shutil.disk_usage(there).free:,} are free on its disk. Nothing half-written stays: it is what it "
            f"was, or whole. Free some space there, or name another place."
        ) from error


def sweep(folder: Path, kind: Kind, kept: Collection[str]) -> None:
    """Files of ``kind`` that are not among ``kept`` are gone afterwards, and the names are on the disk."""
    for path in folder.iterdir():
        if path.name not in kept and kind.owns(path.name) and path.name not in (LOCK, kind.file):
            with suppress(OSError):  # a folder, or in use elsewhere: it is no part of the whole and may stay
                path.unlink()
    files.sync(folder)


def take_back(folder: Path, added: Iterable[files.Entry], kept: Collection[str]) -> None:
    """Gives back the space of the files ``added`` that are not among ``kept``."""
    for entry in added:
        if entry.name not in kept:
            (folder / entry.name).unlink(missing_ok=True)
