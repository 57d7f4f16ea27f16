"""Scores of LongBench's synthetic, few-shot and code tasks: numbers, class names and one line of code."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .rouge import longest_common

_NOT_CODE = ("`", "#", "//")


def count(answer: str, reference: str) -> float:
    """The share of all whole numbers in the answer that equal the reference; 0 where there is none."""
    numbers = re.findall(r"\d+", answer)
    return numbers.count(reference) / len(numbers) if numbers else 0.0


def paragraph(answer: str, reference: str) -> float:
    """``count`` for a reference of the form "Paragraph 7" or "段落7"."""
    wanted = re.search(r"\d+", reference)
    return count(answer, wanted[0]) if wanted else 0.0


def classification(answer: str, reference: str, classes: Sequence[str]) -> float:
    """One over the number of class names in the answer, if the right one is among them.

    A name that is part of the right one is not counted against it, but where it stands right behind another such name
    among those in the answer: published scores pass over it there (LongBench, Bai et al. 2024), and are compared with.
    """
    named = [name for name in classes if name in answer]
    at = 0
    while at < len(named):
        if named[at] in reference and named[at] != reference:
            del named[at]  # the next one takes its place, and is not looked at
        at += 1
    return 1 / len(named) if reference in named else 0.0


def code_similarity(answer: str, reference: str) -> float:
    """Likeness of the answer's first line of code to the reference: 2 LCS / (sum of lengths), in whole percents.

    A line with a backtick, # or // is none of code. LCS is the longest common subsequence of characters, as in the
    ratio of fuzzywuzzy over Levenshtein's library.
    """
    lines = answer.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in _NOT_CODE)), "")
    if not line or not reference:
        return 0.0
    return round(100 * 2 * longest_common(line, reference) / (len(line) + len(reference))) / 100
