"""Which tokens of a vocabulary are one word: the same but for case and the white space around it.

An answer that quotes a text writes its words at other places of a sentence, so that other tokens stand for them. Knows
no text.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

_SPACE = "\u2581\u0120\u010a\u010d\u0109 \t\r\n"  # as SentencePiece and byte-level vocabularies write white space too
_LOWER = {ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}  # others may be single bytes

# a memo, not state: a vocabulary always folds alike, and a large one takes some tenths of a second
_FOUND: WeakKeyDictionary[Any, NDArray[np.int32]] = WeakKeyDictionary()


def folds(tokenizer: Any) -> NDArray[np.int32] | None:
    """For every id of ``tokenizer`` the lowest id that is the same word, [ids]; None where it tells no vocabulary.

    A processor of several kinds of input is asked for its tokenizer.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not hasattr(tokenizer, "get_vocab"):
        return None
    if tokenizer not in _FOUND:
        _FOUND[tokenizer] = _folded(tokenizer.get_vocab())
    return _FOUND[tokenizer]


def _folded(vocabulary: dict[str, int]) -> NDArray[np.int32]:
    found = np.arange(max(vocabulary.values(), default=-1) + 1, dtype=np.int32)
    lowest: dict[str, int] = {}
    for token, number in sorted(vocabulary.items(), key=itemgetter(1)):
        word = token.strip(_SPACE)
        found[number] = lowest.setdefault(word.lower() if word.isascii() else word.translate(_LOWER), number)
    return found
