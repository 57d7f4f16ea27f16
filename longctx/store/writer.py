"""The one process that changes an artifact: files are added one by one, and the manifest makes them the artifact.

Owns the journal of what was added and not yet published. A new version shares the files that did not change. A process
that ends halfway leaves the old version as it was, and a journal from which the next one goes on.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from longctx.errors import ArtifactError, naming
from longctx.store import files, folders, manifest
from longctx.store.files import Entry
from longctx.store.manifest import JOURNAL, Manifest

KIND = folders.Kind(
    "a compiled document",
    manifest.FILE,
    ("document-", "vectors-", "segment-", "summary-", "copies-"),
    names=re.compile(re.escape(JOURNAL)),
)


class Writer:
    """Holds the lock of ``folder`` inside ``with``. ``published`` is the version there is; None: none, or damaged."""

    def __init__(self, folder: Path, wait_seconds: float = folders.WAIT_SECONDS) -> None:
        self.folder = folder
        self.published: Manifest | None = None
        self.written_bytes = 0
        self.expected_bytes = 0  # of all files, as far as the caller knows them
        self._asked_bytes = 0
        self._wait, self._held = wait_seconds, ExitStack()
        self._known: dict[str, Entry] = {}
        self._added: list[Entry] = []

    def __enter__(self) -> Self:
        """Raises UsageError where no artifact can be and ArtifactBusy while another process writes this one."""
        self._held.enter_context(folders.held(self.folder, KIND, self._wait))
        try:
            self.published = manifest.load(self.folder)
        except ArtifactError:
            self.published = None  # none yet, or damaged, or of another format: replaced as a whole
        if self.published is not None:
            stored = [part.segments for part in (self.published.kv, self.published.summaries) if part is not None]
            self._known = {segment.key: segment.file for part in stored for segment in part}
            self._known |= {order.key: order.file for order in self.published.copies}
        self._known |= self._journal()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, OSError):
            self._take_back()
        self._held.close()

    @property
    def needed_bytes(self) -> int:
        """About what all files take: what is expected, or what was to be added so far where that is more."""
        return max(self.expected_bytes, self._asked_bytes)

    def known(self, key: str) -> Entry | None:
        """The file that was made from what ``key`` is a hash of, by this or an earlier process."""
        entry = self._known.get(key)
        return entry if entry is not None and files.holds(self.folder, entry) else None

    def unpublished(self, prefix: str) -> dict[str, Entry]:
        """What is known by keys that begin with ``prefix``."""
        return {key: entry for key, entry in self._known.items() if key.startswith(prefix)}

    def add(self, kind: str, data: bytes, key: str = "") -> Entry:
        """The file of ``data``, on the disk afterwards. With a ``key`` a later process finds it, published or not."""
        self._asked_bytes += len(data)
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
        folders.sweep(self.folder, KIND, {entry.name for entry in made.entries()})

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
            kept = {entry.name for entry in manifest.load(self.folder).entries()}
        except ArtifactError:
            kept = set()
        folders.take_back(self.folder, self._added, kept)
        journal, left = self.folder / JOURNAL, self._journal().values()
        unfinished = any(entry.name not in kept and files.holds(self.folder, entry) for entry in left)
        if journal.is_file() and not journal.is_symlink() and not unfinished:
            journal.unlink()  # there is nothing to go on from
