"""BM25 over the units of a document, and the words it counts.

Owns words. Scoring is bm25s' (Lucene variant, k1 = 1.2, b = 0.75): Robertson and Zaragoza 2009, Lù 2024 (arXiv
2407.03618). Knows no model.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import bm25s
import numpy as np
import regex
from numpy.typing import NDArray

# Scripts written without spaces between words: their runs are counted as pairs of characters.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# A letter or digit keeps the marks on it, vowel signs among them, and the joiners between: without them the words of
# half the scripts of India, and all that is written with loose accents, fall to pieces.
_WORD = regex.compile(rf"[{_UNSPACED}]+|(?:[[\p{{L}}\p{{N}}]--[{_UNSPACED}]][\p{{M}}\u200c\u200d]*)+", regex.VERSION1)
_IS_UNSPACED = re.compile(rf"[{_UNSPACED}]")
# English and nothing else: other languages are left to the inverse document frequency.
_STOP = frozenset(bm25s.stopwords.STOPWORDS_EN)
# Words that ask: an answer need not hold them, so a text without them is no less about the question.
_ASKING = frozenset(
    "what who whom whose which when where why how much many "
    "do does did has have had can could would should may might".split()
)


def words(text: str) -> list[str]:
    """The words of ``text`` as they are counted: lower case, English stop words dropped, CJK as bigrams.

    Accents count alike whether they are written with their letter or behind it.
    """
    found: list[str] = []
    for word in _WORD.findall(unicodedata.normalize("NFC", text.casefold())):
        if _IS_UNSPACED.match(word):
            found += [word[i : i + 2] for i in range(max(1, len(word) - 1))]
        elif word not in _STOP:
            found.append(word)
    return found


class Lexical:
    """An index of ``texts``; the same texts give the same index."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.size = len(texts)
        vocabulary: dict[str, int] = {}
        rows = [[vocabulary.setdefault(word, len(vocabulary)) for word in words(text)] for text in texts]
        self.vocabulary = vocabulary
        self._bm25: bm25s.BM25 | None = None
        if vocabulary:
            self._bm25 = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
            self._bm25.index((rows, vocabulary), show_progress=False)

    def scores(self, question: str) -> NDArray[np.float32]:
        """BM25 of every text, [texts]; all zero when no word of the question occurs."""
        known = [word for word in words(question) if word in self.vocabulary]
        if not known or self._bm25 is None:
            return np.zeros(self.size, dtype=np.float32)
        return np.asarray(self._bm25.get_scores(known), dtype=np.float32)

    def coverage(self, question: str) -> float:
        """The largest share of the question's words, by weight, that one text holds; 0 for a question without words."""
        asked = set(words(question)) - _ASKING
        total = sum(self.weight(word) for word in asked)
        held = np.zeros(self.size)
        for word in asked & self.vocabulary.keys():
            held[self._holders(word)] += self.weight(word)
        return float(held.max() / total) if total and self.size else 0.0

    def _holders(self, word: str) -> NDArray[np.int64]:
        """The texts in which a known word occurs."""
        assert self._bm25 is not None
        at = self.vocabulary[word]
        first, last = self._bm25.scores["indptr"][at : at + 2]
        return np.asarray(self._bm25.scores["indices"][first:last], dtype=np.int64)

    def weight(self, word: str) -> float:
        """The inverse document frequency of a word as ``words`` spells it; the largest one for a word never seen."""
        if self._bm25 is None or word not in self.vocabulary:
            return float(np.log(1.0 + self.size))
        count = len(self._holders(word))
        return float(np.log(1.0 + (self.size - count + 0.5) / (count + 0.5)))
