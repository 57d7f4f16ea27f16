"""LooGLE (Li et al. 2023), questions with a short answer: long articles, ``qa_pairs`` as a list or as its text.

LooGLE's own page gives the recall of ROUGE-L, which long answers win; here it is a second figure beside token F1.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..cases import Case, Measure, Question, Row, rows

_METRICS = ("token_f1", "rouge_l", "loogle_rouge_l")
_MOST_NEW = 128


def cases(folder: Path) -> Iterator[Case]:
    for row in rows(folder):
        questions = [_question(row.within(pair), str(number)) for number, pair in enumerate(_pairs(row))]
        yield Case(row.file.stem, f"{row.file.stem}-{row.number}", row.text("input"), tuple(questions))


def _question(pair: Row, number: str) -> Question:
    asked = pair.text("Q")
    measures = tuple(Measure(metric, (pair.text("A"),)) for metric in _METRICS)
    return Question(number, asked, f"{asked}\nAnswer as briefly as possible.", measures, _MOST_NEW)


def _pairs(row: Row) -> list[Any]:
    if not isinstance(row.fields.get("qa_pairs"), str):
        return row.items("qa_pairs")
    try:
        value = ast.literal_eval(row.text("qa_pairs"))
    except (ValueError, SyntaxError) as error:
        raise row.wrong("has 'qa_pairs' that are no list") from error
    if not isinstance(value, list):
        raise row.wrong("has no list in 'qa_pairs'")
    return value
