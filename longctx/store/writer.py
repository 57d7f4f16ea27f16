"""The one process that changes an artifact: files are added one by one, and the manifest makes them the artifact.

Owns the lock, the journal of what was added and not yet published, and what is swept away. A new version shares the
files that did not change. A process that ends halfway leaves the old version as it was, and a journal from which the
next one goes on.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from longctx.errors import ArtifactBusy, ArtifactError, UsageError, naming
from longctx.store import files, manifest
from longctx.store.files import Entry
from longctx.store.manifest import JOURNAL, Manifest

LOCK = ".lock"
_WAIT_SECONDS = 30.0


class Writer:
    """Holds the lock of ``folder`` inside ``with``. ``published`` is the version there is; None: none, or damaged."""

    def __init__(self, folder: Path, wait_seconds: float = _WAIT_SECONDS) -> None:
        self.folder = folder
        self.published: Manifest | None = None
        self.written_bytes = 0
        self._wait, self._lock = wait_seconds, FileLock(folder / LOCK)
        self._known: dict[str, Entry] = {}
        self._added: list[Entry] = []

    def __enter__(self) -> Self:
        """Raises UsageError where no artifact can be and ArtifactBusy while another process writes this one."""
        check_place(self.folder)
        self.folder.mkdir(exist_ok=True)
        try:
            self._lock.acquire(timeout=self._wait)
        except Timeout as error:
            raise ArtifactBusy(
                f"another process has been writing {self.folder} for the {self._wait:.0f} s that were waited for it. "
                f"Try again when it is done, or name another place."
            ) from error
        try:
            self.published = manifest.load(self.folder)
        except ArtifactError:
            self.published = None  # none yet, or damaged, or of another format: replaced as a whole
        if self.published is not None:
            stored = [part.segments for part in (self.published.kv, self.published.summaries) if part is not None]
            self._known = {segment.key: segment.file for part in stored for segment in part}
        self._known |= self._journal()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, OSError):
            self._take_back()
        self._lock.release()

    def known(self, key: str) -> Entry | None:
        """The file that was made from what ``key`` is a hash of, by this or an earlier process."""
        entry = self._known.get(key)
        return entry if entry is not None and files.holds(self.folder, entry) else None

    def unpublished(self, prefix: str) -> dict[str, Entry]:
        """What is known by keys that begin with ``prefix``."""
        return {key: entry for key, entry in self._known.items() if key.startswith(prefix)}

    def add(self, kind: str, data: bytes, key: str = "") -> Entry:
        """The file of ``data``, on the disk afterwards. With a ``key`` a later process finds it, published or not."""
        entry, new = files.write(self.folder, kind, data)
        if new:
            self._added.append(entry)
            self.written_bytes += entry.size
        if key:
            self._note(key, entry)
        return entry

    def share(self, source: Path, entry: Entry) -> bool:
        """Whether the file of another artifact belongs to this one too now, without being written again."""
        return files.share(source, self.folder, entry)

    def publish(self, made: Manifest) -> None:
        """The artifact is ``made`` afterwards, and files that are no part of it are gone."""
        manifest.publish(self.folder, made)
        self.published, self._added = made, []
        kept = {entry.name for entry in made.entries()}
        for path in self.folder.iterdir():
            if path.name not in kept and _ours(path.name) and path.name not in (LOCK, manifest.FILE):
                with suppress(OSError):  # a folder, or in use elsewhere: it is no part of the artifact and may stay
                    path.unlink()
        files.sync(self.folder)

    def _note(self, key: str, entry: Entry) -> None:
        """A line in the journal. It is written after the file it names, so that a line never promises too much."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        path = self.folder / JOURNAL
        with naming(path), open(os.open(path, flags, 0o666), "ab") as file:
            line = {"key": key, "name": entry.name, "size": entry.size, "sha256": entry.sha256}
            if file.tell():  # a line that a full disk cut off ends here
                file.write(b"\n")
            file.write(json.dumps(line).encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._known[key] = entry

    def _journal(self) -> dict[str, Entry]:
        """What an interrupted process had added. A line that was half written counts as absent."""
        found: dict[str, Entry] = {}
        try:
            with files.regular(self.folder / JOURNAL) as file:
                lines = file.read().splitlines()
        except (OSError, files.NotRegular):
            return found
        for line in lines:
            try:
                row = json.loads(line)
                found[str(row["key"])] = Entry(str(row["name"]), int(row["size"]), str(row["sha256"]))
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def _take_back(self) -> None:
        """Give back the space of what this process added: the disk may be full.

        What the manifest names stays: it may have been put in place just before the failure.
        """
        try:
            kept = manifest.load(self.folder).entries()
        except ArtifactError:
            kept = ()
        for entry in self._added:
            if entry not in kept:
                (self.folder / entry.name).unlink(missing_ok=True)


def check_place(folder: Path) -> None:
    """Raises UsageError for a place where no artifact can be made: a file, a folder of other things, no parent."""
    if not folder.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {str(folder.absolute().parent)!r} for {folder.name!r}.")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{str(folder)!r} is a file; a compiled document is a folder. Name another place.")
    names = {path.name for path in folder.iterdir()}
    if manifest.FILE not in names and (others := sorted(name for name in names if not _ours(name))):
        raise UsageError(f"{str(folder)!r} holds other files ({others[0]!r:.80}). Name a place of its own.")


def _ours(name: str) -> bool:
    """Whether only an artifact has a file of that name."""
    stem = name.removesuffix(files.DAMAGED)
    part = stem.endswith(files.PART) and stem.startswith((manifest.FILE, *_KINDS))
    return stem in (LOCK, JOURNAL, manifest.FILE) or part or files.NAME.fullmatch(stem) is not None


_KINDS = ("document-", "vectors-", "segment-", "summary-")
