"""Single files of an artifact: written whole under the name of their content, read only as what they were written as.

Owns sizes, checksums, links and what is done with a damaged file. Knows no format: content is bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from longctx.errors import ArtifactError, naming

NAME = re.compile(r"[a-z]{1,16}-[0-9a-f]{32}\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")
PART, DAMAGED = ".part", ".damaged"


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored file: its name in the folder, its length in bytes and the SHA-256 of its content."""

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        named = NAME.fullmatch(self.name) and _SHA256.fullmatch(self.sha256) and self.sha256[:32] in self.name
        if not named or self.size < 1:
            raise ValueError(
                f"no stored file is {self.name!r:.80} of {self.size} bytes with SHA-256 {self.sha256!r:.80}"
            )


def write(folder: Path, kind: str, data: bytes) -> tuple[Entry, bool]:
    """Afterwards ``data`` is on the disk, named by its content; and whether it had to be written for that.

    A file that was half written when the process ended has another name and is never read.
    """
    digest = hashlib.sha256(data).hexdigest()
    entry = Entry(f"{kind}-{digest[:32]}.safetensors", len(data), digest)
    try:
        there = read(folder, entry) is not None
    except ArtifactError:  # damaged, and set aside by now
        there = False
    if not there:
        before = os.path.lexists(folder / entry.name)  # and could not be read
        try:
            replace(folder / entry.name, data)
        except OSError:
            if not before:  # it may have had its name already
                (folder / entry.name).unlink(missing_ok=True)
            raise
    return entry, not there


def replace(path: Path, data: bytes) -> None:
    """``path`` holds ``data`` afterwards, or what it held before; there is no moment between the two."""
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    part.unlink(missing_ok=True)  # of a dead process of the same number
    try:
        with naming(path), open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """The names in ``folder`` are on the disk afterwards."""
    if os.name == "nt":  # where a folder cannot be opened, and names are written with their files
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def share(source: Path, folder: Path, entry: Entry) -> bool:
    """Whether ``folder`` holds the file of another folder afterwards, as a second name of the same bytes."""
    if not holds(folder, entry):
        if not holds(source, entry):
            return False
        try:
            os.link(source / entry.name, folder / entry.name, follow_symlinks=False)
        except OSError:  # another disk, or one without links: the content is made again
            return False
    return True


def holds(folder: Path, entry: Entry) -> bool:
    """Whether there is a regular file of that name and length."""
    return state(folder, entry) is not None


def state(folder: Path, entry: Entry) -> tuple[int, ...] | None:
    """What is another one after the file was written to or replaced; None where ``holds`` is not so."""
    try:
        found = os.lstat(folder / entry.name)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def read(folder: Path, entry: Entry, check: bool = True) -> bytes | None:
    """The content of a stored file, or None where there is no such file.

    Raises ArtifactError, and sets the file aside, when it is not the file that was written.
    """
    path = folder / entry.name
    try:
        with regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                raise _damaged(folder, entry.name, f"it has {size:,} bytes and was written with {entry.size:,}")
            data = file.read(entry.size + 1)
    except FileNotFoundError:
        return None
    except NotRegular as error:
        raise _damaged(folder, entry.name, str(error)) from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror or error}).") from error
    if len(data) != entry.size:
        raise _damaged(folder, entry.name, f"it has {len(data):,} bytes and was written with {entry.size:,}")
    if check and (sha256 := hashlib.sha256(data).hexdigest()) != entry.sha256:
        raise _damaged(folder, entry.name, f"its SHA-256 is {sha256[:16]}… and was {entry.sha256[:16]}…")
    return data


class NotRegular(Exception):
    """What has the name of a file is a link, a folder, a pipe or a device."""


def regular(path: Path) -> BinaryIO:
    """The file at ``path``, open for reading; links are not followed and pipes not waited for."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if path.is_symlink():
            raise NotRegular("it is a link to another place") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise NotRegular("it is no regular file")
    return os.fdopen(handle, "rb")


def malformed(folder: Path, entry: Entry, why: str) -> ArtifactError:
    """The error for a file whose bytes are those that were written, but say what cannot be."""
    return _damaged(folder, entry.name, why)


def _damaged(folder: Path, name: str, why: str) -> ArtifactError:
    """The error for a damaged file, which is renamed so that nothing reads it again."""
    aside = f"{name}{DAMAGED}"
    try:
        os.replace(folder / name, folder / aside)
        done = f"It was set aside as {aside}."
    except FileNotFoundError:  # another process was first
        done = f"It was set aside as {aside}."
    except OSError as error:
        done = f"It could not be set aside ({error.strerror or error})."
    return ArtifactError(f"{folder / name} is damaged: {why}. {done} Compile the documents again to mend the artifact.")
