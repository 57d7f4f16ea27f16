"""The text in which needles are hidden: where it comes from, how it is cut to a length, and how it is planted.

Owns the order of sources, the places where a sentence ends, lengths in tokens and the recipe that makes the same text
again. Knows no task, no model and no question.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import longctx
from longctx import plugins
from longctx.errors import UsageError

from . import standard_library
from .needles._nouns import Needle

PYTHON = "python"  # the haystack without --haystack
_BETWEEN = "\n\n"  # between two sources
_CHUNK_CHARS = 50_000
_NAMED = 8  # files of a haystack that a row names; its hash tells it from every other
_AT_ONCE = 256  # pieces whose tokens are counted in one call
_LONGEST = 1_000  # characters of a piece: a needle stands near its place in a text without sentences, too
_LEAST_GAP, _GAP = 64, 0.05  # tokens, and share of a length, that may be missing at the end before a piece is cut
# Where a sentence may end: a mark between a word and a capital, a mark of scripts without spaces, a blank line. The
# splitter of sentences knows abbreviations; it also ends lines, where a needle would stand inside a table or a program.
_END = re.compile(r"(?<=\w[.!?])[\"'”’)\]]{0,2}+\s++(?=[\"'“‘(\[]?[A-Z])|(?<=[。！？])\s*+|\n[ \t\r]*+\n\s*+")
_SPACE = re.compile(r"\s*\Z")

Count = Callable[[Sequence[str]], list[int]]  # texts -> tokens of each


@dataclass(frozen=True, slots=True)
class Planted:
    """A text with needles in it. ``spans`` are the characters of each needle, ``inserted`` what was put where.

    ``chars`` is how much of the haystack was taken; ``inserted`` holds offsets into it, in the order of insertion.
    ``depths`` are the shares of the haystack's tokens that really stand before each needle.
    """

    text: str
    tokens: int
    chars: int
    haystack_sha256: str
    inserted: tuple[tuple[int, str], ...]
    spans: tuple[tuple[int, int], ...]
    depths: tuple[float, ...]


class Haystack:
    """Lists of pieces one after the other, read as far as a length needs; the tokens of a piece are counted once."""

    def __init__(self, sources: Iterator[list[str]], count: Count) -> None:
        self._sources, self._count = sources, count
        self._pieces: list[str] = []
        self._tokens: list[int] = []
        self._total, self._gap = 0, ""

    def take(self, tokens: int) -> tuple[list[str], list[int]]:
        """The first pieces of at most ``tokens`` tokens together, and the tokens of each.

        Where a whole piece would leave much of ``tokens`` empty, its beginning is taken, up to a line's end or a space.
        Raises UsageError when the haystack is shorter.
        """
        while self._total < tokens:
            pieces = next(self._sources, None)
            if pieces is None:
                raise UsageError(
                    f"the haystack has {self._total:,} tokens of this model and {tokens:,} are asked for. Name more "
                    "files with --haystack, or shorter --lengths: it is never repeated."
                )
            # white space belongs to the token of the word behind it, so it is counted there
            bodies = [piece.rstrip() for piece in pieces]
            gaps = [self._gap, *(piece[len(body) :] for piece, body in zip(pieces, bodies, strict=True))]
            self._gap = gaps.pop()
            counted = self._count([gap + body for gap, body in zip(gaps, bodies, strict=True)])
            self._pieces += pieces
            self._tokens += counted
            self._total += sum(counted)
        ends = list(accumulate(self._tokens))
        keep = bisect_left(ends, tokens + 1)
        pieces, counted = self._pieces[:keep], self._tokens[:keep]
        room = tokens - sum(counted)
        if room > max(_LEAST_GAP, _GAP * tokens):
            part = _beginning_of(self._pieces[keep], room, self._count)
            pieces, counted = [*pieces, part], [*counted, *self._count([part])]
        return pieces, counted


def cut(text: str) -> list[str]:
    """Pieces that together are ``text``; every one but the last ends where a sentence or a paragraph ends.

    A piece of more than _LONGEST characters is cut at line ends, else at spaces, else anywhere.
    """
    begins = set(plugins.load("splitters", "sentences").begins(text))
    ends = [end.end() for end in _END.finditer(text) if end.end() in begins]
    pieces, start = [], 0
    for end in (*ends, len(text)):
        while end - start > _LONGEST:
            stop = _good_end(text, start, start + _LONGEST)
            pieces.append(text[start:stop])
            start = stop
        if start < end:
            pieces.append(text[start:end])
        start = end
    return pieces


def _good_end(text: str, start: int, stop: int) -> int:
    """Behind the last line end in the second half of the range, else behind the last space, else ``stop``."""
    middle = (start + stop) // 2
    return text.rfind("\n", middle, stop) + 1 or text.rfind(" ", middle, stop) + 1 or stop


def _beginning_of(piece: str, tokens: int, count: Count) -> str:
    """As much of the beginning of ``piece`` as ``tokens`` tokens hold, ended as well as can be."""
    low, high = 0, len(piece)  # low characters are known to fit, high are not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count([piece[:middle]])[0] <= tokens else (low, middle)
    return piece[: _good_end(piece, 0, low)]


def counter(tokenizer: Any) -> Count:
    """Counts the tokens of texts with ``tokenizer``, nothing added and nothing parsed as a special token."""

    def count(texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        found = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
        return [len(ids) for ids in found["input_ids"]]

    return count


def tokens_of(text: str, count: Count) -> int:
    """The tokens of a long text, counted in chunks that end where a word does."""
    chunks, start = [], 0
    while start < len(text):
        stop = start + _CHUNK_CHARS
        space = text.rfind(" ", start + 1, stop) if stop < len(text) else -1
        chunks.append(text[start : space if space > 0 else stop])
        start += len(chunks[-1])
    return sum(count(chunks))


def plant(
    take: Callable[[int], tuple[list[str], list[int]]], needles: Sequence[Needle], length: int, count: Count
) -> Planted:
    """A text of at most ``length`` tokens with every needle between two pieces, in the order of their places.

    ``take`` gives the first pieces of a number of tokens. Raises UsageError when the needles alone are longer.
    """
    own = sum(count([f" {needle.text}" for needle in needles]))
    if own >= length:
        raise UsageError(f"{len(needles)} needles take {own:,} tokens, which a text of {length:,} cannot hold.")
    pieces, tokens = take(length - own)
    while pieces:
        planted = _inserted(pieces, tokens, needles)
        total = tokens_of(planted.text, count)
        if total <= length:
            return replace(planted, tokens=total)
        # pieces count differently side by side
        pieces, tokens = take(max(0, sum(tokens) - (total - length)))
    raise UsageError(f"no sentence of the haystack fits a text of {length:,} tokens with {own:,} tokens of needles.")


def rebuilt(text: str, inserted: Sequence[Sequence[Any]]) -> str:
    """The planted text from the part of the haystack that was taken and what was put into it."""
    parts, last = [], 0
    for at, string in inserted:
        parts += [text[last:at], string]
        last = at
    return "".join([*parts, text[last:]])


def digest(text: str) -> str:
    """SHA-256 of the text as UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sources(paths: Sequence[Path]) -> Iterator[list[str]]:
    """The pieces of files and of all files below folders, in the order named and sorted by path; without any, Python's.

    Raises UsageError for a folder without files and what ``longctx.read`` raises for a file that it does not read.
    """
    texts = (document.text for document in longctx.read(files(paths))) if paths else standard_library.texts()
    for text in texts:
        pieces = cut(text.rstrip() + _BETWEEN)
        yield from (pieces[at : at + _AT_ONCE] for at in range(0, len(pieces), _AT_ONCE))


def named(paths: Sequence[Path]) -> list[str]:
    """What the haystack is called in rows: the names of its files, never where they lie."""
    if not paths:
        return [f"{PYTHON} {platform.python_version()}"]
    found = [path.name for path in files(paths)]
    return found if len(found) <= _NAMED else [*found[:_NAMED], f"and {len(found) - _NAMED} more"]


def contents(paths: Sequence[Path]) -> str | None:
    """SHA-256 of the names and contents of the haystack's files, in order; None for Python's, named by its version."""
    if not paths:
        return None
    found = hashlib.sha256()
    for path in files(paths):
        with path.open("rb") as file:
            own = hashlib.file_digest(file, "sha256").hexdigest()
        found.update(f"{own} {path.name}\n".encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def sentences(filler: Iterator[str]) -> Iterator[list[str]]:
    """The pieces of a filler: its sentences with a space after each, many at a time."""
    while True:
        yield [f"{sentence} " for sentence in islice(filler, _AT_ONCE)]


def beginning(pieces: Iterator[list[str]], chars: int) -> str:
    """The first ``chars`` characters of pieces. Raises UsageError when there are fewer."""
    parts, length = [], 0
    while length < chars:
        found = next(pieces, None)
        if found is None:
            raise UsageError(f"the haystack has {length:,} characters and {chars:,} were used: it is another one.")
        parts += found
        length += sum(map(len, found))
    return "".join(parts)[:chars]


def files(paths: Sequence[Path]) -> list[Path]:
    """Every file of ``paths``: folders are searched, hidden names left out. Raises UsageError for one without files."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        below = [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
        own = sorted(p for p in below if not any(part.startswith(".") for part in p.relative_to(path).parts))
        if not own:
            raise UsageError(f"--haystack {str(path)!r} is a folder without files.")
        found += own
    first: dict[Path, Path] = {}  # a text is never repeated, so no file is read twice
    for path in found:
        first.setdefault(path.resolve(), path)
    return list(first.values())


def _inserted(pieces: Sequence[str], tokens: Sequence[int], needles: Sequence[Needle]) -> Planted:
    """``pieces`` with every needle at the end of a piece that is nearest to its place."""
    ends = [0, *accumulate(tokens)]
    starts = [0, *accumulate(map(len, pieces))]
    edges = [_nearest(ends, needle.place * ends[-1]) for needle in needles]
    order = sorted(range(len(needles)), key=lambda i: (edges[i], needles[i].place))
    spans: list[tuple[int, int]] = [(0, 0)] * len(needles)
    inserted, parts, length, last = [], [], 0, 0
    for index in order:
        edge = edges[index]
        before = "".join(pieces[last:edge])
        gap = _SPACE.search(pieces[edge - 1])[0] if edge else " "  # type: ignore[index]  # it matches the empty end
        lead = "" if gap or not edge else " "
        string = f"{lead}{needles[index].text}{gap or ' '}"
        parts += [before, string]
        start = length + len(before) + len(lead)
        spans[index] = (start, start + len(needles[index].text))
        length += len(before) + len(string)
        inserted.append((starts[edge], string))
        last = edge
    text = "".join([*parts, *pieces[last:]])
    depths = tuple(ends[edge] / max(1, ends[-1]) for edge in edges)
    return Planted(text, 0, starts[-1], digest("".join(pieces)), tuple(inserted), tuple(spans), depths)


def _nearest(ends: Sequence[int], wanted: float) -> int:
    at = bisect_left(ends, wanted)
    return at if at < len(ends) and (at == 0 or ends[at] - wanted <= wanted - ends[at - 1]) else at - 1
