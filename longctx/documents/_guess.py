"""Text in an encoding that nobody declared. Runs in the parser process; only it knows charset-normalizer."""

from __future__ import annotations

from typing import BinaryIO

import charset_normalizer

from longctx.documents._outcome import Parsed, Refused
from longctx.documents.encoding import sample
from longctx.documents.limits import Limits


def parse(file: BinaryIO, limits: Limits) -> Parsed:
    """The text of ``file``, which is not UTF-8, newlines as they are."""
    text, warnings = guess(file.read())
    return Parsed([("", text)], warnings=warnings)


def guess(data: bytes) -> tuple[str, list[str]]:
    """The text in the likeliest encoding that can decode all of it, and a warning that names it."""
    for match in charset_normalizer.from_bytes(sample(data)):
        try:
            text = data.decode(match.encoding)
        except UnicodeDecodeError:
            continue
        return text, [f"not UTF-8: read as {match.encoding}, which is a guess; save the file as UTF-8 to be sure"]
    raise Refused("it is no text: neither UTF-8 nor any other encoding fits")
