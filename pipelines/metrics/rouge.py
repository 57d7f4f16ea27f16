"""ROUGE (Lin 2004) as the benchmarks compute it; the two programs in use differ, so each has its own name here.

``rouge_1``, ``rouge_2`` and ``rouge_l`` are those of the package rouge-score without stemming: words are runs of ASCII
letters and digits in lower case, n-grams count as often as they occur. ``longbench_rouge_l`` and ``loogle_rouge_l`` are
those of the package rouge: words are split at white space, texts at full stops, and a word counts once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[a-z0-9]+")
_TINY = 1e-8  # keeps the F of the package rouge defined where nothing is shared


def rouge_1(answer: str, reference: str) -> float:
    """F1 of the multisets of words."""
    return _shared_grams(answer, reference, 1)


def rouge_2(answer: str, reference: str) -> float:
    """F1 of the multisets of pairs of neighbouring words."""
    return _shared_grams(answer, reference, 2)


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words."""
    said, wanted = _words(answer), _words(reference)
    common = longest_common(said, wanted)
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def longbench_rouge_l(answer: str, reference: str) -> float:
    """F of ``rouge.Rouge().get_scores``, key rouge-l: what LongBench publishes for summaries."""
    precision, recall = _union(answer, reference)
    return 2 * precision * recall / (precision + recall + _TINY)


def loogle_rouge_l(answer: str, reference: str) -> float:
    """Recall of ``rouge.Rouge().get_scores``, key rouge-l: what LooGLE publishes."""
    return _union(answer, reference)[1]


def longest_common(a: Sequence[object], b: Sequence[object]) -> int:
    """The length of the longest common subsequence, by one row of bits per item of ``b`` (Hyyrö 2004)."""
    places: dict[object, int] = {}
    for at, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << at
    full = (1 << len(a)) - 1
    row = full  # a zero bit at i: a longer subsequence ends at item i of ``a``
    for item in b:
        hits = row & places.get(item, 0)
        row = (row + hits | row - hits) & full
    return len(a) - row.bit_count()


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _shared_grams(answer: str, reference: str, length: int) -> float:
    said, wanted = _grams(_words(answer), length), _grams(_words(reference), length)
    shared = (said & wanted).total()
    return 2 * shared / (said.total() + wanted.total()) if shared else 0.0


def _grams(words: Sequence[str], length: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + length]) for at in range(len(words) - length + 1))


def _union(answer: str, reference: str) -> tuple[float, float]:
    """Precision and recall of the distinct words of the reference that stand in order in some sentence of the answer.

    Every sentence of the reference is compared with every one of the answer; the distinct words of all those common
    subsequences are counted against the distinct words of either text.
    """
    said, wanted = _sentences(answer), _sentences(reference)
    if not said or not wanted:
        return 0.0, 0.0
    found = {word for sentence in wanted for other in said for word in _common(sentence, other)}
    return tuple(len(found) / len({word for s in text for word in s}) for text in (said, wanted))  # type: ignore[return-value]


def _sentences(text: str) -> list[list[str]]:
    return [" ".join(piece.split()).split(" ") for piece in text.split(".") if piece]


def _common(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """A longest common subsequence; of several, the one the package rouge takes (ties give up the last of ``b``)."""
    lengths = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            lengths[i][j] = lengths[i - 1][j - 1] + 1 if x == y else max(lengths[i - 1][j], lengths[i][j - 1])
    found, i, j = [], len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            found.append(a[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]
