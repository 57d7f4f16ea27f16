"""Keys and values of segments in files, mapped into memory as they are asked for.

Owns which file belongs to which segment and when it is checked. What the tensors mean is said by a function handed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from longctx.store import files, tensors
from longctx.store.artifact import Artifact
from longctx.store.files import Entry
from longctx.store.manifest import SegmentKV

Restore = Callable[[Mapping[str, Tensor], int], Any]
"""A segment from its tensors and its number. Raises ValueError for tensors it cannot have."""


def key(model: str, prefix: Sequence[int], ids: Sequence[int], form: str) -> str:
    """A hash of all that a segment's keys and values are computed from, and of the form they are stored in."""
    digest = hashlib.sha256(f"{model}|{form}|{','.join(map(str, prefix))}|{','.join(map(str, ids))}".encode("ascii"))
    return f"segment {digest.hexdigest()}"


def pack(found: Mapping[str, Tensor]) -> bytes:
    """The bytes of a segment's file."""
    return save(dict(found))


class SegmentFiles:
    """The stored segments of one artifact. ``keys`` say what each would be computed from now."""

    def __init__(
        self, artifact: Artifact, held: SegmentKV, keys: Sequence[str], restore: Restore, prove: Callable[[], None]
    ) -> None:
        self.held = held
        self._artifact, self._keys, self._restore, self._prove = artifact, keys, restore, prove
        self._checked: dict[str, tuple[int, ...] | None] = {}
        self._proved = not artifact.checks

    def get(self, segment: int, mapped: bool = True) -> Any:
        """Keys and values of ``segment``; None where the file is gone or was computed from something else.

        They are views of the file, or copies. The first use of all proves the model, the first use of a file its
        checksum, and so does the first after it was written to.
        """
        entry = self.entry(segment, self._keys[segment])
        if entry is None:
            self._artifact.warn("segments were stored for another prompt frame and are read again.")
            return None
        data, state = None, files.state(self._artifact.folder, entry)
        if not mapped or state is None or self._checked.get(entry.name) != state:
            data = self._artifact.content(entry)
            if data is None:
                return self._gone(entry)
        try:
            found = self._map(entry, data, state) if mapped or data is None else load(data)
            self._prove_once()
            return self._restore(found, segment)
        except FileNotFoundError:  # a newer version swept it just now
            return self._gone(entry)
        except (SafetensorError, ValueError) as error:
            raise files.malformed(self._artifact.folder, entry, str(error)) from error

    def entry(self, segment: int, key: str) -> Entry | None:
        """The file of ``segment``, if it holds what ``key`` is a hash of."""
        stored = self.held.segments[segment]
        return stored.file if stored.key == key else None

    def _map(self, entry: Entry, data: bytes | None, state: tuple[int, ...] | None) -> dict[str, Tensor]:
        """Views of the file, whose content ``data`` was looked at in that ``state`` before its first use."""
        if data is not None:
            tensors.header(data)
            self._checked[entry.name] = state
        with safe_open(self._artifact.folder / entry.name, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}

    def _gone(self, entry: Entry) -> None:
        self._artifact.warn(f"{entry.name} is gone from {self._artifact.folder}: its segment is read again.")

    def _prove_once(self) -> None:
        if not self._proved:
            self._prove()
            self._proved = True
