"""QMSum (Zhong et al. 2021): meetings with queries about all of it (general) or a part of it (specific)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..cases import Case, Measure, Question, Row, rows

_METRICS = ("rouge_l", "rouge_1", "rouge_2")
_MOST_NEW = 512  # LongBench's limit for this set


def cases(folder: Path) -> Iterator[Case]:
    for row in rows(folder):
        questions = []
        for kind in ("general", "specific"):
            for number, item in enumerate(row.items(kind, f"{kind}_query_list")):
                questions.append(_question(row.within(item), f"{kind}-{number}"))
        name = row.text("id") if row.has("id") else f"{row.file.stem}-{row.number}"
        yield Case("qmsum", name, _transcript(row), tuple(questions))


def _transcript(row: Row) -> str:
    if row.has("transcript"):
        return row.text("transcript")
    turns = [row.within(turn) for turn in row.items("meeting_transcripts")]
    return "\n".join(f"{turn.text('speaker')}: {turn.text('content')}" for turn in turns)


def _question(item: Row, number: str) -> Question:
    asked = item.text("query")
    measures = tuple(Measure(metric, (item.text("answer"),)) for metric in _METRICS)
    return Question(number, asked, f"{asked}\nAnswer in one or more sentences.", measures, _MOST_NEW)
