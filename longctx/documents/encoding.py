"""Bytes to text without touching a newline, and what in a text a reader cannot see. Knows no file and no library."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

# UTF-32 first: its little-endian mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\x0b\x0c\r\x08\x1b"))
_BINARY_SHARE = 0.005
_SAMPLE_BYTES = 1 << 20

# Joiners are part of emoji and of several scripts: they hide something only where they follow Latin text.
_UNSEEN = (
    ("zero-width", re.compile("[\u200b\u2060-\u2064\ufeff\u180e]|(?<=[\x00-\u024f])[\u200c\u200d]")),
    ("bidirectional control", re.compile("[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")),
    (
        "invisible tag",
        re.compile("(?<![\U0001f3f4\U000e0000-\U000e007f])[\U000e0000-\U000e007f][\U000e0000-\U000e007f]*"),
    ),
)


class NotText(ValueError):
    """The bytes are no text in any encoding this module may assume; the message says why."""


def decode(data: bytes) -> str | None:
    """The text of ``data`` by its byte order mark, else as strict UTF-8; None when it has to be guessed.

    Newlines stay as they are. Raises NotText for bytes that are no text.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(name)
            except UnicodeDecodeError as error:
                raise NotText(f"it begins with the mark of {name.upper()} but is not: {error.reason}") from error
    if b"\x00" in data:
        raise NotText("it has NUL bytes: a binary file, or UTF-16 without a byte order mark")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    if len(data) - len(data.translate(None, _CONTROLS)) > _BINARY_SHARE * len(data):
        raise NotText("it is neither UTF-8 nor text in another encoding: too many control characters")
    return None


def sample(data: bytes) -> bytes:
    """The first part of ``data`` for guessing, cut at a newline so that no character is cut."""
    if len(data) <= _SAMPLE_BYTES:
        return data
    end = data.rfind(b"\n", 0, _SAMPLE_BYTES)
    return data[: end + 1] if end > 0 else data


def unseen_characters(text: str) -> Iterator[str]:
    """One warning for each sort of character in ``text`` that a reader does not see but a model does."""
    if text.isascii():
        return
    for name, pattern in _UNSEEN:
        count = sum(len(match.group()) for match in pattern.finditer(text))
        if count:
            plural = "" if count == 1 else "s"
            yield f"{count:,} {name} character{plural} in the text: invisible to people, kept for the model"
