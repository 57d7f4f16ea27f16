"""From source code to the places where its syntax would like to be cut, and to the signatures of its definitions.

Owns the grammars and everything about tree-sitter, which is imported only when a document is parsed. Knows characters
and bytes; of tokens it only knows a count it is handed.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from longctx.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from tree_sitter import Node

EXTRA = "code"
# language -> (module of the grammar, function in it)
GRAMMARS = {
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "go": ("tree_sitter_go", "language"),
    "java": ("tree_sitter_java", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "php": ("tree_sitter_php", "language_php"),
    "python": ("tree_sitter_python", "language"),
    "ruby": ("tree_sitter_ruby", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
}
_DEFINITION = re.compile(
    r"(?:function|method|class|struct|impl|trait|interface|module|enum|constructor|namespace|union|mod_item)"
)
_LEADING = re.compile(r"comment|attribute_item|decorator$")  # nodes that belong to the one after them
_TRAILING = re.compile(r"comment|^[,;]$")  # nodes that belong to the one before them on their line
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_INDENT = 256  # bytes; also how far back a signature's line may begin


@dataclass(frozen=True, slots=True)
class Definition:
    """A function, class or the like: bytes ``[start, end)``, its signature's line(s) being ``[start, body)``."""

    start: int
    body: int
    end: int


@dataclass(frozen=True, slots=True)
class Outline:
    """Places in bytes, ascending, where a piece may begin; at a barrier a new thing begins or a long one has ended."""

    cuts: list[int]
    barriers: list[bool]
    definitions: list[Definition]


class Source:
    """A text as the bytes that tree-sitter reads, and the way back from bytes to characters."""

    def __init__(self, text: str) -> None:
        # Lone surrogates have no UTF-8; one character stands for one, so every offset stays what it was.
        self.data = text.encode() if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text).encode()
        raw = np.frombuffer(self.data, dtype=np.uint8)
        self._starts = None if len(raw) == len(text) else np.flatnonzero((raw & 0xC0) != 0x80)  # [characters]

    def characters(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The characters that hold the bytes ``places``; the length of the text for the end of the data."""
        if self._starts is None:
            return places
        at = np.searchsorted(self._starts, places, side="right") - 1
        return np.where(places >= len(self.data), len(self._starts), at).astype(np.int64)

    def bytes(self, characters: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first bytes of ``characters``, each below the length of the text."""
        return characters if self._starts is None else self._starts[characters].astype(np.int64)


def why_unavailable(language: str) -> str:
    """The package that ``language`` lacks here, empty when it can be parsed. Raises UsageError if it is unknown."""
    if language not in GRAMMARS:
        listed = ", ".join(GRAMMARS)
        raise UsageError(
            f"no grammar for the language {language!r}. Known: {listed}. The splitter 'sentences' takes any text."
        )
    for module in ("tree_sitter", GRAMMARS[language][0]):
        if importlib.util.find_spec(module) is None:
            return module.replace("_", "-")
    return ""


def outline(source: Source, language: str, count: Callable[[int, int], int], max_tokens: int) -> Outline:
    """The syntax of ``source``, opened where a node holds more than ``max_tokens`` by ``count(start, end)`` of bytes.

    Raises UsageError for a language without a known grammar and MissingExtra when its package is not installed. Code
    that does not parse has an outline too.
    """
    missing = why_unavailable(language)
    if missing:
        raise MissingExtra(f"splitting {language} code", missing, EXTRA)
    tree_sitter = importlib.import_module("tree_sitter")
    module, function = GRAMMARS[language]
    grammar = tree_sitter.Language(getattr(importlib.import_module(module), function)())
    root = tree_sitter.Parser(grammar).parse(source.data).root_node
    return _walk(root, source.data, count, max_tokens)


def _walk(root: Node, data: bytes, count: Callable[[int, int], int], max_tokens: int) -> Outline:
    """1. Take nodes in text order. 2. Keep a small one whole. 3. Open a large one, with barriers around it."""
    found = Outline([], [], [])
    stack: list[tuple[Node, bool, bool]] = [(root, False, False)]  # node, does a barrier stand before it, is it glued
    while stack:
        node, barrier, glued = stack.pop()
        start, end = node.start_byte, node.end_byte
        place, opens_line = _line_start(node, data)
        if start and not glued:
            found.cuts.append(place)
            found.barriers.append(barrier and opens_line)
        if count(place, end) <= max_tokens or not node.child_count:
            continue
        body = _body(node)
        if body is not None:
            found.definitions.append(Definition(_signature_start(node, data), body.start_byte, end))
        stack.extend(reversed(_arrange(node, body, data, count, max_tokens)))
    return _ascending(found)


def _arrange(
    node: Node, body: Node | None, data: bytes, count: Callable[[int, int], int], max_tokens: int
) -> list[tuple[Node, bool, bool]]:
    """The children of a large node, with barriers around the large ones and comments glued to their neighbours."""
    arranged: list[tuple[Node, bool, bool]] = []
    previous: Node | None = None
    was_large = False
    leading = -1  # the child that opens a run of comments and decorators right before this one
    for child in node.children:
        large = count(child.start_byte, child.end_byte) > max_tokens
        opens_line = _line_start(child, data)[1]
        barrier = (large or was_large) and not (body is not None and child.start_byte == body.start_byte)
        glued = child.start_byte == node.start_byte
        if previous is not None and leading >= 0 and data.count(b"\n", previous.end_byte, child.start_byte) < 2:
            opener = arranged[leading][0]
            if large or count(opener.start_byte, child.end_byte) <= max_tokens:
                arranged[leading] = (opener, arranged[leading][1] or large, arranged[leading][2])
                glued = True
        elif previous is not None and not opens_line and _TRAILING.search(child.type):
            glued = glued or was_large or count(previous.start_byte, child.end_byte) <= max_tokens
        arranged.append((child, barrier, glued))
        if not (opens_line and _LEADING.search(child.type)):
            leading = -1
        elif leading < 0 or not glued:
            leading = len(arranged) - 1
        previous, was_large = child, large
    return arranged


def _ascending(found: Outline) -> Outline:
    """The same cuts without those that a broken tree put behind an earlier one."""
    cuts: list[int] = []
    barriers: list[bool] = []
    for cut, barrier in zip(found.cuts, found.barriers, strict=True):
        if cuts and cut <= cuts[-1]:
            barriers[-1] = barriers[-1] or barrier and cut == cuts[-1]
            continue
        cuts.append(cut)
        barriers.append(barrier)
    return Outline(cuts, barriers, found.definitions)


def _line_start(node: Node, data: bytes) -> tuple[int, bool]:
    """Where a cut before ``node`` belongs: before its indentation if it is the first of its line; and whether it is."""
    start, column = node.start_byte, node.start_point.column
    if column == 0:
        return start, True
    if column <= _LONGEST_INDENT and data[start - column : start].isspace():
        return start - column, True
    return start, False


def _body(node: Node) -> Node | None:
    """The body of a definition; None for anything else."""
    if not node.is_named or not _DEFINITION.search(node.type):
        return None
    return node.child_by_field_name("body")


def _signature_start(node: Node, data: bytes) -> int:
    """The first byte that is not white space on the line of ``node``, or the node's own where that is far."""
    start, column = node.start_byte, node.start_point.column
    if column > _LONGEST_INDENT:
        return start
    line = data[start - column : start]
    return start - column + len(line) - len(line.lstrip())
