"""The metrics by name, and the score of an answer under a measure: the best over its references.

Owns which metrics are right or wrong (0 or 1) and which are graded; intervals between systems depend on that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .cases import Measure, Question
from .metrics import chinese, choices, counts, rouge, words


def _nothing() -> None:
    """What most metrics need besides what is installed."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A function of an answer and a reference (and class names, where the task has them).

    ``check`` raises MissingExtra where the package that it needs is not installed.
    """

    function: Callable[..., float]
    graded: bool = False
    check: Callable[[], None] = _nothing


METRICS = {
    "token_f1": Metric(words.token_f1, graded=True),
    "exact_match": Metric(words.exact_match),
    "contains": Metric(words.contains),
    "substring": Metric(words.substring),
    "whole_number": Metric(words.whole_number),
    "first_number": Metric(words.first_number),
    "rouge_1": Metric(rouge.rouge_1, graded=True),
    "rouge_2": Metric(rouge.rouge_2, graded=True),
    "rouge_l": Metric(rouge.rouge_l, graded=True),
    "longbench_rouge_l": Metric(rouge.longbench_rouge_l, graded=True),
    "loogle_rouge_l": Metric(rouge.loogle_rouge_l, graded=True),
    "chinese_f1": Metric(chinese.chinese_f1, graded=True, check=chinese.check),
    "chinese_rouge_l": Metric(chinese.chinese_rouge_l, graded=True, check=chinese.check),
    "option": Metric(choices.option),
    "lone_option": Metric(choices.lone_option),
    "exam_option": Metric(choices.exam_option),
    "exam_options": Metric(choices.exam_options, graded=True),
    "exam_number": Metric(choices.exam_number),
    "exam_words": Metric(choices.exam_words),
    "exam_loyalty": Metric(choices.exam_loyalty),
    "count": Metric(counts.count, graded=True),
    "paragraph": Metric(counts.paragraph, graded=True),
    "classification": Metric(counts.classification, graded=True),
    "code_similarity": Metric(counts.code_similarity, graded=True),
}


def ready(question: Question) -> None:
    """Raises MissingExtra where a package is not installed that one of the question's measures needs."""
    for measure in question.measures:
        METRICS[measure.metric].check()


def scores(question: Question, answer: str) -> dict[str, float]:
    """Every measure of the question by its name, the first of them first."""
    said = answer.lstrip("\n").split("\n")[0] if question.first_line else answer
    return {measure.name: score(measure, said) for measure in question.measures}


def score(measure: Measure, answer: str) -> float:
    """Between 0 and 1."""
    function = METRICS[measure.metric].function
    known = {"classes": measure.classes} if measure.classes else {}
    return max(function(answer, reference, **known) for reference in measure.references)


def graded(question: Question) -> bool:
    """Whether the question's score can lie between 0 and 1."""
    return METRICS[question.measures[0].metric].graded
