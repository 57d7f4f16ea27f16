"""SQuALITY (Wang et al. 2022): stories with questions that are answered by a summary, four references each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..cases import Case, Measure, Question, Row, rows

_METRICS = ("rouge_l", "rouge_1", "rouge_2")
_MOST_NEW = 350  # tokens of the 250 words that references have at most


def cases(folder: Path) -> Iterator[Case]:
    for row in rows(folder):
        about = row.within(row.fields["metadata"]) if row.has("metadata") else row
        questions = [_question(row.within(item)) for item in row.items("questions")]
        yield Case("squality", about.text("passage_id"), row.text("document"), tuple(questions))


def _question(item: Row) -> Question:
    asked = item.text("question", "question_text")
    if item.has("responses"):
        references = tuple(item.within(response).text("response_text") for response in item.items("responses"))
    else:
        references = tuple(map(str, item.items("references")))
    if not references:
        raise item.wrong("has a question without references")
    measures = tuple(Measure(metric, references) for metric in _METRICS)
    prompt = f"{asked}\nAnswer in one paragraph of at most 250 words."
    return Question(item.text("number", "question_number"), asked, prompt, measures, _MOST_NEW)
