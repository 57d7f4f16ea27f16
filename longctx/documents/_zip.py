"""Judges a zip archive by its directory alone, before the rest is expanded. Runs in the parser process; stdlib only."""

from __future__ import annotations

import stat
import xml.parsers.expat
import zipfile
from typing import IO, BinaryIO

from longctx.documents._outcome import OverLimit, Refused

_RATIO_FLOOR_BYTES = 1 << 20
_LOCAL_HEADER_BYTES = 30
_CHUNK_BYTES = 1 << 16
_ENCRYPTED = 0x1
_MARK = "[Content_Types].xml"
_SUFFIXES = (".xml", ".rels")


def check(file: BinaryIO, *, entries: int, ratio: int, expanded_bytes: int) -> None:
    """``file`` is a zip archive within the limits of well-formed XML without entities; else OverLimit or Refused."""
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if _MARK not in archive.namelist():
            raise Refused(f"it is a zip archive but no Office file: {_MARK} is missing")
        if len(parts) > entries:
            raise OverLimit("zip_entries", "the archive has too many entries", f"{len(parts):,}")
        _check_names(parts)
        _check_places(parts, archive.start_dir)
        expanded = sum(part.file_size for part in parts)
        if expanded > expanded_bytes:
            raise OverLimit("expanded_bytes", "the archive expands too far", f"{expanded:,}")
        if expanded > _RATIO_FLOOR_BYTES and expanded > ratio * size:
            raise OverLimit("zip_ratio", f"{size:,} bytes expand to {expanded:,}", f"{expanded // size:,}:1")
        for part in parts:
            if part.filename.lower().endswith(_SUFFIXES):
                with archive.open(part) as content:
                    _check_xml(part.filename, content)
    file.seek(0)


def _check_names(parts: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for part in parts:
        name = part.filename
        if name.startswith(("/", "\\")) or ":" in name or ".." in name.replace("\\", "/").split("/"):
            raise Refused(f"the archive has an entry that points outside of it: {name[:80]!r}")
        if name.lower() in seen:
            raise Refused(f"the archive has two entries of one name: {name[:80]!r}")
        if stat.S_ISLNK(part.external_attr >> 16):
            raise Refused(f"the archive has a symbolic link: {name[:80]!r}")
        if part.flag_bits & _ENCRYPTED:
            raise Refused("the archive is encrypted; remove the password and read it again")
        seen.add(name.lower())


def _check_places(parts: list[zipfile.ZipInfo], end: int) -> None:
    """Entries that share bytes are how a small archive expands without bound."""
    for part in sorted(parts, key=lambda part: part.header_offset, reverse=True):
        if part.header_offset + _LOCAL_HEADER_BYTES + len(part.orig_filename) + part.compress_size > end:
            raise Refused(f"entries of the archive overlap at {part.filename[:80]!r}")
        end = part.header_offset


def _check_xml(name: str, content: IO[bytes]) -> None:
    """Well-formed, and without a DTD: Office files never have one, and entities expand from it."""

    def declared(*_: object) -> None:
        raise Refused(f"{name[:80]!r} has a document type declaration, which Office files never have")

    parser = xml.parsers.expat.ParserCreate()
    parser.StartDoctypeDeclHandler = declared
    try:
        while chunk := content.read(_CHUNK_BYTES):
            parser.Parse(chunk, False)
        parser.Parse(b"", True)
    except xml.parsers.expat.ExpatError as error:
        raise Refused(f"{name[:80]!r} is not well-formed XML ({error})") from error
