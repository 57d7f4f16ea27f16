"""The two streams of a command: results on stdout, everything else on stderr.

Owns what may reach a terminal: text of documents and models is shown with its control characters spelled out, so that
it can neither move the cursor nor reorder a line. Knows no command.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from longctx.commands.process import trimming
from longctx.console import bar
from longctx.protocols import Progress

_LINES = {"\n", "\t"}
# What turns or hides the text around it: directional marks, embeddings and isolates, line separators, the soft hyphen.
_TURNING = {0xAD, 0x61C, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}


@dataclass(frozen=True, slots=True)
class Screen:
    """``json``: one object on stdout and nothing else there. ``quiet``: no progress and no summary on stderr."""

    json: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # lone surrogates, and terminals without UTF-8

    @property
    def progress(self) -> Progress:
        return trimming(None if self.quiet else bar())

    def result(self, value: Mapping[str, Any]) -> None:
        """The one object of ``--json``."""
        print(json.dumps(value, ensure_ascii=True, allow_nan=False), flush=True)

    def line(self, text: str = "") -> None:
        _write(sys.stdout, text + "\n")

    def piece(self, text: str) -> None:
        """Part of a line, shown at once."""
        _write(sys.stdout, text)

    def note(self, text: str) -> None:
        """What ``--quiet`` leaves out."""
        if not self.quiet:
            _write(sys.stderr, text + "\n")

    def warn(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            _write(sys.stderr, f"warning: {warning}\n")

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and values in two columns."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self.line(f"{name:<{width}}  {value}".rstrip())


def failure(text: str) -> None:
    """The last word of a command that did not do what was asked, on a line of its own after an unfinished bar."""
    _write(sys.stderr, f"{chr(10) * sys.stderr.isatty()}longctx: {text}\n")


def visible(text: str) -> str:
    """``text`` with every character spelled out that a terminal would obey instead of show."""
    return "".join(c if c in _LINES or (c.isprintable() and ord(c) not in _TURNING) else _spelled(c) for c in text)


def one_line(text: str, most: int = 200) -> str:
    """White space as single spaces; the middle is left out of what is longer than ``most``."""
    flat = " ".join(text.split())
    half = (most - 3) // 2
    return flat if len(flat) <= most else f"{flat[:half]} … {flat[-half:]}"


def size(count: float) -> str:
    """Bytes as people write them."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _spelled(character: str) -> str:
    code = ord(character)
    if character.isspace() and code not in _TURNING and code > 0x9F:
        return " "  # spaces of other widths
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _write(stream: TextIO, text: str) -> None:
    stream.write(visible(text) if stream.isatty() else text)
    stream.flush()
