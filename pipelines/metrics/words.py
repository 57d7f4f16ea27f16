"""Answers compared word by word: token F1, exact match, and whether a reference stands in the answer.

Owns the normalisation of SQuAD (Rajpurkar et al. 2016), which LongBench, L-Eval and NarrativeQA's followers share.
"""

from __future__ import annotations

import re
import string
from collections import Counter

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NUMBER = re.compile(r"\W*(\d+(?:[.,]\d+)*)\W*")
_GROUPING = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")  # the comma of 1,000


def normalise(text: str) -> str:
    """Lower case without ASCII punctuation and without a, an, the; white space as single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the multisets of normalised words; 0 where no word is shared."""
    said, wanted = normalise(answer).split(), normalise(reference).split()
    shared = (Counter(said) & Counter(wanted)).total()
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0


def exact_match(answer: str, reference: str) -> float:
    """1 when both are the same after normalisation."""
    return float(normalise(answer) == normalise(reference))


def contains(answer: str, reference: str) -> float:
    """1 when the normalised reference is a substring of the normalised answer (Lost in the Middle, RULER).

    A reference that is a number must stand there as a whole one: 9 is not in 1984, and 1000 is in 1,000.
    """
    number = _NUMBER.fullmatch(reference)
    if number:
        return whole_number(_GROUPING.sub("", answer), _GROUPING.sub("", number[1]))
    wanted = normalise(reference)
    return float(bool(wanted) and wanted in normalise(answer))


def substring(answer: str, reference: str) -> float:
    """1 when the reference stands in the answer as it is, whatever the case (UUIDs of key-value retrieval)."""
    return float(bool(reference) and reference.lower() in answer.lower())


def whole_number(answer: str, reference: str) -> float:
    """1 when the reference stands in the answer and is not part of a longer number or word (altered-number QA)."""
    pattern = rf"(?<![\w])(?<!\d[.,]){re.escape(reference)}(?!\w)(?![.,]\d)"
    return float(bool(reference) and re.search(pattern, answer, re.IGNORECASE) is not None)


def first_number(answer: str, reference: str) -> float:
    """1 when the first run of digits in the answer is the reference as a number (LongChat-Lines)."""
    found = re.search(r"\d+", answer)
    return float(found is not None and int(found[0]) == int(reference))
