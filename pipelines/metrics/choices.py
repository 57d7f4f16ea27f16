"""Which option an answer chose, by the published rules of LongBench v2 and L-Eval.

The rules guess where an answer names no option; a benchmark's figures can only be compared with the same guesses.
"""

from __future__ import annotations

import re

from .words import normalise

_STATED = (re.compile(r"The correct answer is \(([A-D])\)"), re.compile(r"The correct answer is ([A-D])"))
_LONE = re.compile(r"\b([A-D])\b")
_MARKED = re.compile(r"[A-Z](?=[\s.)])")
_RUN = re.compile(r"[A-D]+")
_PART = 0.25  # what L-Eval gives for some of several right options and no wrong one


def option(answer: str, reference: str) -> float:
    """1 when the letter after "The correct answer is" is the reference; no such words, no point (LongBench v2).

    The first letter in brackets of its own goes before the first one without.
    """
    return float(_stated(answer) == reference)


def lone_option(answer: str, reference: str) -> float:
    """As ``option``, and where those words are missing the first letter A to D that stands alone."""
    lone = _LONE.search(answer.replace("*", ""))
    return float((_stated(answer) or (lone[1] if lone else "")) == reference)


def exam_option(answer: str, reference: str) -> float:
    """1 when the first capital A to D anywhere in the answer is the reference's (L-Eval, one right option)."""
    if not answer.strip():
        return 0.0
    found = _RUN.search(answer)
    said = answer if answer in "ABCD" else found[0][0] if found else "A"
    return float(said == _letters(reference))


def exam_options(answer: str, reference: str) -> float:
    """1 for exactly the right letters, 0.25 for some of them and no wrong one (L-Eval, several right options).

    Letters are put in order where they begin the answer or stand as marks in it; a run of them elsewhere is not.
    """
    if not answer.strip():
        return 0.0
    said, wanted = _said(answer), _letters(reference)
    return 1.0 if said == wanted else _PART if set(said) <= set(wanted) else 0.0


def exam_number(answer: str, reference: str) -> float:
    """1 when the number after "The answer is", else the last one of the first paragraph, is right (L-Eval, GSM)."""
    return float(bool(_number(answer)) and _number(answer) == _number(reference))


def exam_words(answer: str, reference: str) -> float:
    """1 when both are the same number, or the first line of some length holds the reference, case and spaces aside."""
    if _is_number(answer) and _is_number(reference):
        return float(float(answer) == float(reference))
    line = next((line for line in answer.split("\n") if len(line) > 1), answer)
    return float("".join(reference.lower().split()) in "".join(line.lower().split()))


def exam_loyalty(answer: str, reference: str) -> float:
    """1 when the answer's first true or false is the reference's before "[fact:" (L-Eval, science fiction)."""
    found = re.search(r"true|false", answer.lower().partition("[fact:")[0])
    return float(found is not None and found[0] == normalise(reference.lower().partition("[fact:")[0]))


def _stated(answer: str) -> str:
    """The letter after "The correct answer is"; empty where there is none."""
    plain = answer.replace("*", "")
    found = next((found for pattern in _STATED if (found := pattern.search(plain))), None)
    return found[1] if found else ""


def _letters(reference: str) -> str:
    """The letters A to D of a reference's first word."""
    words = reference.split()
    return "".join(c for c in words[0] if c in "ABCD") if words else ""


def _said(answer: str) -> str:
    """The letters of an answer that may name several: those it begins with, or those that stand as marks in it."""
    begins = _RUN.match(answer)
    first = begins[0] if begins else ""
    if len(first) > 1:
        return _sorted(first)
    rest = answer[len(first) :].split("Question")[0]
    found = first + "".join(mark for mark in _MARKED.findall(rest) if mark in "ABCD")
    if found:
        return _sorted(found)
    run = _RUN.search(rest)
    return run[0] if run else "A"


def _sorted(letters: str) -> str:
    """Each letter once, in order."""
    return "".join(sorted(set(letters)))


def _number(text: str) -> str:
    """The digits, up to a decimal point, of the word that holds the answer's number; empty where there is none."""
    stated = re.search(r"The answer is (\S+)", text)
    words = [stated[1]] if stated else [w for w in text.split("\n\n")[0].split(" ")[::-1] if re.search(r"\d", w)]
    return "".join(c for c in words[0].split(".")[0] if c.isdigit()) if words else ""


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*", text) is not None
