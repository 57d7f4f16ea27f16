"""A file of result rows that a run adds to, so that an interrupted run goes on where it ended.

Owns the file: which rows it holds, what they were made with, where and when, and its last line; and how any file is
written whole. Knows no job: a row is a JSON object of ``made_with`` and the fields that tell it from every other.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import re
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from longctx.errors import ArtifactError, UsageError, naming

Row = dict[str, Any]
Key = tuple[Any, ...]


class Rows:
    """The rows of ``path`` by key, in the order of the file."""

    def __init__(self, path: Path, identity: Sequence[str], expected: Callable[[Row], Mapping[str, Any]]) -> None:
        """``expected`` says what a row of the file must have been made with to stand beside those to come.

        Raises ArtifactError, before anything is written, for a row of other settings or a file of no rows at all. A
        last line that was cut short, and rows marked ``again``, are not taken over: they are made once more.
        """
        self._path, self._identity = path, tuple(identity)
        held = read(path) if path.exists() else []
        for number, row in enumerate(held, 1):
            if missing := [name for name in (*identity, "made_with") if name not in row]:
                raise ArtifactError(f"{path}, line {number} has no {', '.join(missing)}. Nothing was changed.")
            if apart := differences(row["made_with"], expected(row)):
                raise ArtifactError(
                    f"{path}, line {number} was made with other settings: {'; '.join(apart)}. Name another --out; "
                    "nothing was changed."
                )
        self.rows: dict[Key, Row] = {self.key(row): row for row in held if not row.get("again")}
        self._clean = path.exists() and len(self.rows) == len(held) and path.read_bytes().endswith(b"\n")
        self._seen = self._bytes()

    def __contains__(self, row: Mapping[str, Any]) -> bool:
        return self.key(row) in self.rows

    def key(self, row: Mapping[str, Any]) -> Key:
        return tuple(row[name] for name in self._identity)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other run adds to the file. Raises UsageError where one is at it, or was since it was read."""
        with alone(self._path):
            if self._bytes() != self._seen:
                raise UsageError(f"another run has added rows to {self._path} since they were read. Run it again.")
            yield

    def add(self, row: Row) -> None:
        """Afterwards the row is on the disk, as a whole line."""
        if not self._clean:
            self._rewrite()
        with naming(self._path), self._path.open("a", encoding="ascii") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())
        self.rows[self.key(row)] = row
        self._seen = self._bytes()

    def drop(self, keys: Collection[Key]) -> None:
        """The rows of ``keys`` are not held any longer, and leave the file with the next row that is added."""
        for key in keys:
            del self.rows[key]
        self._clean = self._clean and not keys

    def renew(self, rows: Sequence[Row]) -> None:
        """Afterwards each of ``rows`` stands where the row of its key stood, in the file too."""
        self.rows.update((self.key(row), row) for row in rows)
        self._rewrite()

    def sort(self, keys: Sequence[Key]) -> None:
        """Afterwards the rows of ``keys`` stand in that order behind all others, in the file too."""
        place = {key: at for at, key in enumerate(keys)}
        ordered = dict(sorted(self.rows.items(), key=lambda item: place.get(item[0], -1)))
        if list(ordered) != list(self.rows):
            self.rows = ordered
            self._rewrite()

    def _rewrite(self) -> None:
        """The rows taken over and nothing else, in a file that appears whole or not at all."""
        put(self._path, "".join(map(_line, self.rows.values())).encode("ascii"))
        self._clean, self._seen = True, self._bytes()

    def _bytes(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Inside, no other run adds to the rows of ``path``. Raises UsageError where one is at it."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(f"another run is adding rows to {path}. Let it end, or name another --out.") from error
    try:
        yield
    finally:
        lock.release()


def put(path: Path, data: bytes) -> None:
    """Afterwards ``path`` holds ``data``; at no moment a part of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with naming(path):
            part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def here_and_now() -> Row:
    """Where and when a row is made."""
    import torch  # too heavy for those who only read rows

    parts = [platform.machine(), *_processor(), platform.system(), f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return {"machine": ", ".join(parts), "date": time.strftime("%Y-%m-%d")}


def _processor(about: Path = Path("/proc/cpuinfo")) -> list[str]:
    """What the processor calls itself, where the system says so: two of one instruction set differ by factors.

    With the number of its model, where it has one: several go by the name "Intel Xeon Processor".
    """
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines() if about.is_file() else []
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    name = re.sub(r"\((?:R|TM)\)| @.*|[^\w. +-]", "", said.get("model name", ""), flags=re.IGNORECASE)
    plain, model = " ".join(name.split()), said.get("model", "")
    return [f"{plain} model {model}" if model.isdecimal() else plain] if plain else []


def where_and_when(rows: Sequence[Mapping[str, Any]]) -> str:
    """Where and when ``rows`` were made, such as ``x86_64, Linux, 2 cores; 2026-11-25 to 2026-11-26``."""
    machines = dict.fromkeys(row["machine"] for row in rows if "machine" in row)
    dates = sorted({row["date"] for row in rows if "date" in row})
    return "; ".join([*machines, " to ".join(dict.fromkeys((*dates[:1], *dates[-1:])))])


def read(path: Path) -> list[Row]:
    """The rows of a file, without a last line that was cut short; a name that ends in .gz is read unpacked.

    Raises ArtifactError for what is no row.
    """
    found: list[Row] = []
    data = _unpacked(path) if path.suffix == ".gz" else path.read_bytes()
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ArtifactError(f"{path}, line {number} is no row of results. Nothing was changed.") from error
        if not hasattr(row, "keys"):
            raise ArtifactError(f"{path}, line {number} is no row of results. Nothing was changed.")
        found.append(row)
    return found


def _unpacked(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ArtifactError(f"{path} cannot be unpacked ({error}). Nothing was changed.") from error


def differences(held: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What each setting was and is, for every one that differs."""
    keys = [*now, *(key for key in held if key not in now)]
    return [f"{key} was {held.get(key)!r} and is {now.get(key)!r}" for key in keys if held.get(key) != now.get(key)]


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
