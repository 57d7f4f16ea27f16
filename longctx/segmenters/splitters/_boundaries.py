"""Where a text may be cut between two characters without breaking what a reader sees as one.

Owns the rules for line ends, surrogate halves, combining marks, emoji sequences, flags and Hangul syllables. Knows no
tokens and no sentences. The rules follow UAX 29 and err on the side of keeping characters together.
"""

from __future__ import annotations

import unicodedata

_FIRST_JOINER = "\u0300"  # nothing below it continues the character before it
_JOINER = "\u200d"
# Code points outside the mark categories that continue the character before them: joiners, conjoining Hangul vowels
# and finals, Thai and Lao AM, half-width voicing marks, skin tones, tags of flags.
_CONTINUING = (
    (0x0E33, 0x0E33),
    (0x0EB3, 0x0EB3),
    (0x1160, 0x11FF),
    (0x200C, 0x200D),
    (0xD7B0, 0xD7FB),
    (0xFF9E, 0xFF9F),
    (0x1F3FB, 0x1F3FF),
    (0xE0020, 0xE007F),
)
_FLAG_LETTERS = ("\U0001f1e6", "\U0001f1ff")


def may_cut(text: str, at: int, floor: int = 0) -> bool:
    """Whether ``text`` may be cut before character ``at``; ``floor`` is a place that is known to be a cut.

    Looks back further than one character only inside a run of flags, and never beyond ``floor``.
    """
    if not 0 < at < len(text):
        return True
    before, after = text[at - 1], text[at]
    if is_pair(before, after) or before == _JOINER:
        return False
    if after < _FIRST_JOINER:
        return True
    if continues(after):
        return False
    if _is_flag_letter(before) and _is_flag_letter(after):
        return _flag_letters_before(text, at, floor) % 2 == 0
    return True


def is_pair(before: str, after: str) -> bool:
    """Whether two characters are one and must never be parted: CR LF, or the two halves of a surrogate pair."""
    if after == "\n":
        return before == "\r"
    return "\udc00" <= after <= "\udfff" and "\ud800" <= before <= "\udbff"


def continues(character: str) -> bool:
    """Whether ``character`` belongs to the one before it: a mark, a joiner, a modifier."""
    if unicodedata.category(character).startswith("M"):
        return True
    code = ord(character)
    return any(first <= code <= last for first, last in _CONTINUING)


def _is_flag_letter(character: str) -> bool:
    return _FLAG_LETTERS[0] <= character <= _FLAG_LETTERS[1]


def _flag_letters_before(text: str, at: int, floor: int) -> int:
    first = at
    while first > floor and _is_flag_letter(text[first - 1]):
        first -= 1
    return at - first
