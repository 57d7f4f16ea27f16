"""``read(path)``: files become documents whose text has exact offsets, pages where there are some, and warnings.

Owns paths, ids and what is refused at the door. Knows no parser and no model.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import BinaryIO, overload

from longctx.documents import encoding, process
from longctx.documents.kinds import Kind, kind_of
from longctx.documents.limits import Limits, over
from longctx.errors import DocumentError, EmptyInput, UsageError
from longctx.types import Document, Page

PAGE_SEPARATOR = "\n\n"
_HEAD_BYTES = 1024
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:")
_READS = "longctx reads text, Markdown, source code, HTML, PDF and DOCX"


@overload
def read(  # type: ignore[overload-overlap]  # a str is an iterable of str, and is taken first
    source: str | os.PathLike[str], *, limits: Limits | None = None
) -> Document: ...
@overload
def read(source: Iterable[str | os.PathLike[str]], *, limits: Limits | None = None) -> list[Document]: ...
def read(
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, limits: Limits | None = None
) -> Document | list[Document]:
    """A path gives its Document; several paths give a list in the same order, each with an id of its own.

    The id is the file name, with as many folders before it as tell the files apart. Folders and URLs are refused.
    Text keeps its newlines as they are. What was repaired, guessed or left out stands in ``Document.warnings``;
    a file that cannot be read raises, and none of a list is skipped. ``limits`` hold for each file.
    """
    limits = limits or Limits()
    if isinstance(source, (str, os.PathLike)):
        path = _path(source)
        return _read(path, _names([path])[0], limits)
    if isinstance(source, (bytes, bytearray)) or not isinstance(source, Iterable):
        raise UsageError(f"read() takes a path or a list of paths, not {type(source).__name__}.")
    paths = [_path(one) for one in source]
    if not paths:
        raise EmptyInput("read() was given an empty list: no file to read.")
    return [_read(path, name, limits) for path, name in zip(paths, _names(paths), strict=True)]


def _path(source: object) -> Path:
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(f"read() takes paths, not {type(source).__name__}: {source!r:.80}.")
    text = os.fspath(source)
    if not isinstance(text, str):
        raise UsageError("read() takes paths as str or Path, not as bytes.")
    if not text:
        raise EmptyInput("read() was given an empty path.")
    if _URL.match(text):
        raise UsageError(
            f"{text[:200]!r} is a URL, and longctx never downloads documents. Save the page or file and pass its path."
        )
    return Path(text)


def _names(paths: Sequence[Path]) -> list[str]:
    """One id per path: the shortest tail of the path that no other has; a path given twice gets ``#2``."""
    tails = [PurePath(os.path.abspath(path)).parts for path in paths]
    depth = [1] * len(paths)
    while True:
        names = ["/".join(tail[-n:]) for tail, n in zip(tails, depth, strict=True)]
        count = Counter(names)
        grow = [i for i, name in enumerate(names) if count[name] > 1 and depth[i] < len(tails[i])]
        if not grow:
            break
        for i in grow:
            depth[i] += 1
    told_apart = [name if count[name] == 1 else tail[-1] for name, tail in zip(names, tails, strict=True)]
    return _numbered([_printable(name) for name in told_apart])


def _numbered(names: list[str]) -> list[str]:
    taken: set[str] = set()
    for i, name in enumerate(names):
        number = 1
        while names[i] in taken:
            number += 1
            names[i] = f"{name}#{number}"
        taken.add(names[i])
    return names


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in name)


def _read(path: Path, name: str, limits: Limits) -> Document:
    with _open(path, name) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DocumentError(f"{name}: not a regular file (a device, pipe or socket). Save its content to a file.")
        if status.st_size > limits.input_bytes:
            raise over(limits, name, "input_bytes", "the file is too large", f"{status.st_size:,}")
        if status.st_size == 0:
            raise EmptyInput(f"{name}: the file is empty (0 bytes).")
        return _document(file, path, name, limits)


def _open(path: Path, name: str) -> BinaryIO:
    try:
        return open(path, "rb", opener=_without_waiting)
    except FileNotFoundError as error:
        raise DocumentError(
            f"no file {str(path)[:200]!r}. Check the path. To use a string as the document: Document.from_text(text); "
            "for the command line, save it to a file."
        ) from error
    except (OSError, ValueError) as error:
        if os.path.isdir(path):
            raise UsageError(
                f"{str(path)!r} is a folder. Pass the files you mean, as in "
                f"read(sorted(pathlib.Path({str(path)!r}).glob('**/*.md'))), or on the command line "
                f"{shlex.quote(str(path))}/*.md."
            ) from error
        why = getattr(error, "strerror", None) or str(error)
        raise DocumentError(f"{name[:200]}: the file cannot be opened ({why}).") from error


def _without_waiting(path: str, flags: int) -> int:
    """Opens a named pipe without waiting for its writer, so that it can be refused."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _document(file: BinaryIO, path: Path, name: str, limits: Limits) -> Document:
    head = file.read(_HEAD_BYTES)
    kind = kind_of(path.suffix, head)
    if kind.refusal:
        raise DocumentError(f"{name}: {path.suffix or 'this'} is not a format that longctx reads. {kind.refusal}")
    if kind.parsed:
        return _assemble(name, kind, *process.parse(kind.name, file, name, limits))
    data = head + file.read(limits.input_bytes + 1 - len(head))
    if len(data) > limits.input_bytes:
        raise over(limits, name, "input_bytes", "the file grew while it was read", f"over {limits.input_bytes:,}")
    try:
        text = encoding.decode(data)
    except encoding.NotText as error:
        raise DocumentError(f"{name}: {error}. {_READS}; convert the file to one of these.") from error
    if text is None:
        return _assemble(name, kind, *process.parse("text", file, name, limits))
    if len(text) > limits.output_chars:
        raise over(limits, name, "output_chars", "the text is too long", f"{len(text):,}")
    return _assemble(name, kind, [("", text)], False, [])


def _assemble(name: str, kind: Kind, parts: list[tuple[str, str]], paged: bool, warnings: list[str]) -> Document:
    """The document of ``parts``. Between pages stands a blank line that belongs to neither."""
    pages: list[Page] = []
    end = -len(PAGE_SEPARATOR)
    for number, (label, part) in enumerate(parts, start=1):
        start = end + len(PAGE_SEPARATOR)
        end = start + len(part)
        pages.append(Page(number, start, end, label))
    text = PAGE_SEPARATOR.join(part for _, part in parts)
    if not text.strip():
        raise EmptyInput(f"{name}: the file has no text in it.")
    return Document(
        id=name,
        text=text,
        pages=tuple(pages) if paged else (),
        kind=kind.name,
        language=kind.language,
        warnings=(*warnings, *encoding.unseen_characters(text)),
    )
