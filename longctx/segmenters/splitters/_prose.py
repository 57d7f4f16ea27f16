"""Finds where sentences and paragraphs end, in one pass over the text and in linear time.

Owns the rules of punctuation, lines and blank lines for many scripts. Knows no tokens and no units. Every pattern
either takes what it began or begins at a place that no other match tries, so no text makes it slow.
"""

from __future__ import annotations

import re
import unicodedata

from longctx.segmenters.splitters._abbreviations import EITHER, EITHER_WITH_CAPITAL, MONTHS, NUMBERED, OPEN, STARTERS

_NEWLINES = "\n\r\x0b\x0c\x85\u2028\u2029"
_CLOSING = "\"'”’»›)\\]}」』）】》〉］｝＂＇"
_OPENING = "\"'“‘„‚«‹(\\[{「『（【《〈［¿¡—–*_"
# End a sentence whatever follows.
_STRONG = "。！？｡।॥።፧།༎။៕។؟۔։‼⁇⁈⁉๚๛"
# Full stops: what precedes and follows decides.
_WEAK = ".!?…．"

_EVENT = re.compile(
    rf"(?P<mark>[{_STRONG}{_WEAK}]++)"
    rf"(?P<close>(?:[{_CLOSING}]|[ \xa0\u202f]»|\[\d{{1,4}}+\])*+)(?P<gap>\s*+)|(?P<line>[{_NEWLINES}]\s*+)"
)
_NEWLINE = re.compile(rf"\r\n|[{_NEWLINES}]")
_OPENERS = re.compile(rf"[{_OPENING}\s]{{0,8}}+")
_WORD = re.compile(r"[^\W\d_]{1,24}+")
_NUMERAL = re.compile(r"\(?(?:[IVXLC]{2,6}+|[VX])\b")
_ENUMERATOR = re.compile(r"[(\[]?(?:\d{1,3}|[^\W\d_]|[ivxIVX]{1,5})")
# A line that stands for itself: a bullet, number, heading, quote, table row, rule, fence, time stamp or speaker.
_ITEM = re.compile(
    r"[-*+•‣◦▪●○·–—]\s|[(\[]?\d{1,3}+[.)\]]\s|[(\[]?[A-Za-z][.)]\s|\#{1,6}+\s|>|\||[-=*_]{3}|```|~~~"
    r"|[\[(]?\d{1,2}+:\d\d|\[[^\[\]\n]{1,24}+\]|[^\W\d_a-zß-öø-ÿ][\w.'’()\-]{0,20}+(?: [\w.'’()\-]{1,20}+){0,3}+:\s"
)
_SHORT_LINE = 60  # characters; lines of wrapped prose are longer
_LOOK_BACK = 24  # characters; longer words are no abbreviations


def boundaries(text: str) -> tuple[list[int], list[bool]]:
    """Ascending positions where a sentence begins, and for each whether a blank line stands before it."""
    positions: list[int] = []
    blank: list[bool] = []
    line_start = 0
    for event in _EVENT.finditer(text):
        gap_group = "gap" if event["line"] is None else "line"
        gap_start, end = event.span(gap_group)
        lines = _count_lines(text, gap_start, end)
        if lines > 1:
            here = True
        elif gap_group == "gap" and _ends_sentence(text, event, max(line_start, positions[-1] if positions else 0)):
            here = True
        else:
            here = lines == 1 and _line_stands_alone(text, line_start, gap_start, end)
        if here and end < len(text):
            positions.append(end)
            blank.append(lines > 1)
        if lines:
            line_start = end
    return positions, blank


def _count_lines(text: str, start: int, end: int) -> int:
    """How many line ends stand in the white space ``[start, end)``; a paragraph separator counts as two."""
    if end - start < 2:
        return 0 if start == end or text[start] == " " else _weight(text[start])
    return sum(map(_weight, _NEWLINE.findall(text, start, end)))


def _weight(newline: str) -> int:
    if newline == "\u2029":
        return 2
    return 1 if newline == "\r\n" or newline in _NEWLINES else 0


def _line_stands_alone(text: str, line_start: int, line_end: int, next_start: int) -> bool:
    """Whether a single line break ends something: around items and headings, and after a short line."""
    if _ITEM.match(text, next_start) or text.startswith("#", line_start):
        return True
    first = text[next_start : next_start + 1]
    return line_end - line_start < _SHORT_LINE and (first.isupper() or first.isdigit())


def _ends_sentence(text: str, event: re.Match[str], begin: int) -> bool:
    """Whether the run of marks ends the sentence that began at ``begin``, judged from the words on both sides."""
    mark, gap = event["mark"], event["gap"]
    if any(character in _STRONG for character in mark):
        return True
    at = event.end("close")
    if not gap:
        return _ends_without_space(text, mark, at)
    after = _OPENERS.match(text, event.end())
    start = after.end() if after else event.end()
    following = text[start : start + 1]
    if following.islower():
        return not event["close"] and _is_plain_word(text, event.start(), mark)
    if mark != ".":
        return True
    return not _stop_belongs_to_word(text, event, start, begin)


def _ends_without_space(text: str, mark: str, at: int) -> bool:
    """``！``-like use of ``!`` and ``?`` before a wide character, and the full-width stop outside numbers."""
    following = text[at : at + 1]
    if not following:
        return False
    if mark[-1] == "．":
        return not following.isdigit()
    return mark[-1] in "!?" and unicodedata.east_asian_width(following) == "W" and following.isalpha()


def _is_plain_word(text: str, at: int, mark: str) -> bool:
    """Whether an ordinary lower-case word stands before ``at``: text without capitals still has sentences."""
    word = _word_before(text, at)
    plain = len(word) > 1 and word.isalpha() and word.islower()
    return plain and mark in (".", "!", "?") and word not in OPEN and word not in EITHER and word not in NUMBERED


def _stop_belongs_to_word(text: str, event: re.Match[str], start: int, begin: int) -> bool:
    """Whether a full stop is part of an abbreviation, an initial, an ordinal or the number of an item."""
    at = event.start()
    word = _word_before(text, at)
    if not word or event["close"]:
        return False
    following = text[start : start + 1]
    lowered = word.lower()
    if lowered in OPEN:
        return True
    if lowered in NUMBERED and (following.isdigit() or _NUMERAL.match(text, start)):
        return True
    if at - begin < 8 and _ENUMERATOR.fullmatch(text, begin, at):
        return True
    found = _WORD.match(text, start)
    next_word = found[0].lower() if found else ""
    if word.isdigit():
        return len(word) < 3 and next_word in MONTHS
    initial = len(word) == 1 and word.isalpha() and (word.isupper() or not word.isascii())
    with_capital = word[0].isupper() and lowered in EITHER_WITH_CAPITAL
    if initial or with_capital or lowered in EITHER or _has_inner_stop(word):
        return next_word not in STARTERS and bool(next_word or following.isdigit())
    return False


def _has_inner_stop(word: str) -> bool:
    """``U.S`` and ``a.m``: letters parted by stops."""
    return len(word) > 2 and all(len(part) == 1 and part.isalpha() for part in word.split("."))


def _word_before(text: str, at: int) -> str:
    """The letters, digits and inner stops right before ``at``, without opening brackets and quotes."""
    head = text[max(0, at - _LOOK_BACK) : at]
    if not head or head[-1].isspace():
        return ""
    return head.split()[-1].lstrip("\"'“‘„‚«‹([{¿¡—–*_-/")
