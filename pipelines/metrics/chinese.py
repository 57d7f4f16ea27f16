"""Scores of LongBench's Chinese tasks, whose words are those that the package jieba cuts a text into.

Owns the cutting and the normalisation of words. jieba comes with the extra ``eval``; any other cutter can be handed in.
"""

from __future__ import annotations

import importlib
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec

from longctx.errors import MissingExtra

from .rouge import longbench_rouge_l

Cut = Callable[[str], Sequence[str]]
"""A text -> its words in order, which joined give the text."""

# The published list, by code points: it has the full stop 。 and the bracket 》, but neither 〈, 〉, 《 nor the wide ．
_RANGES = (
    (0x2013, 0x2014), (0x2018, 0x2019), (0x201B, 0x201F), (0x2026, 0x2027), (0x3001, 0x3003), (0x300B, 0x3011),
    (0x3014, 0x301F), (0x3030, 0x3030), (0x303E, 0x303F), (0xFE4F, 0xFE4F), (0xFF01, 0xFF0D), (0xFF0F, 0xFF0F),
    (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF64),
)  # fmt: skip
_PUNCTUATION = dict.fromkeys([*map(ord, string.punctuation), *(c for a, b in _RANGES for c in range(a, b + 1))])


def chinese_f1(answer: str, reference: str, cut: Cut | None = None) -> float:
    """Harmonic mean of precision and recall over the multisets of words; 0 where no word is shared.

    Words are cut first; then each is in lower case, without punctuation and white space, and not there if nothing is
    left of it. Raises MissingExtra where ``cut`` is None and jieba is not installed.
    """
    said, wanted = (_normalised((cut or jieba())(text)) for text in (answer, reference))
    shared = (Counter(said) & Counter(wanted)).total()
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0


def chinese_rouge_l(answer: str, reference: str, cut: Cut | None = None) -> float:
    """``longbench_rouge_l`` of the words as they are cut, punctuation among them. Raises as ``chinese_f1`` does."""
    said, wanted = (" ".join((cut or jieba())(text)) for text in (answer, reference))
    return longbench_rouge_l(said, wanted)


def check() -> None:
    """Raises MissingExtra where jieba is not installed."""
    if find_spec("jieba") is None:
        raise MissingExtra("scoring Chinese answers", "jieba", "eval")


@cache
def jieba() -> Cut:
    """jieba's exact mode with its own dictionary, read once (a second). Raises MissingExtra."""
    check()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its last release is older than what warns of it
        package = importlib.import_module("jieba")
    made = package.Tokenizer()
    # what ``initialize`` does, without the file it would trust and leave in the folder for temporary files of all users
    made.FREQ, made.total = made.gen_pfdict(made.get_dict_file())
    made.initialized = True
    cut: Cut = made.lcut
    return cut


def _normalised(words: Sequence[str]) -> list[str]:
    plain = ("".join(word.lower().translate(_PUNCTUATION).split()) for word in words)
    return [word for word in plain if word]
