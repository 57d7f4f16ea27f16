"""Was it said, was it kept, and how sure are the means: pure functions on strings, spans and numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .needles._nouns import Case, Scoring

_Z = 1.959963984540054  # of a two-sided interval of 95 %


def said(output: str, case: Case, scoring: Scoring) -> float:
    """0 to 1. ``substring``: all answers are named; ``exact``: and none of ``others``; ``share``: the part named."""
    named = [names(output, answer) for answer in case.answers]
    if scoring == "share":
        return sum(named) / len(named)
    wrong = scoring == "exact" and any(names(output, other) for other in case.others)
    return float(all(named) and not wrong)


def names(output: str, answer: str) -> bool:
    """Whether ``output`` holds ``answer`` as whole words, whatever the case and the white space between them."""
    words = r"\s+".join(map(re.escape, answer.split()))
    return re.search(rf"(?<!\w){words}(?!\w)", output, re.IGNORECASE) is not None


def kept(evidence: Sequence[tuple[int, int]], read: Sequence[tuple[int, int]]) -> float | None:
    """The share of ``evidence`` that lies whole inside what was read; None where there is no evidence to keep."""
    if not evidence:
        return None
    return sum(any(a <= start and end <= b for a, b in read) for start, end in evidence) / len(evidence)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % of the mean of values of 0 to 1: Wilson's score interval (Wilson 1927).

    It is that of right and wrong; values in between vary less around the same mean, so theirs is too wide, never too
    narrow, and has a width for one row and for equal ones.
    """
    n, share = len(values), sum(values) / len(values)
    middle, half = share + _Z**2 / (2 * n), _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
    return max(0.0, (middle - half) / (1 + _Z**2 / n)), min(1.0, (middle + half) / (1 + _Z**2 / n))
