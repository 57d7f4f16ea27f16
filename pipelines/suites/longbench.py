"""LongBench (Bai et al. 2023), English, Chinese and code: a line a question with its context.

The templates come with the data: ``dataset2prompt.json`` or ``prompts.json`` in the folder. What a template says after
the context is asked after the text; what it says before is asked there too where nothing is repeated after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from longctx.errors import UsageError

from ..cases import Case, Measure, Question, Row, read_json, rows

# task -> (metric, longest answer), as published
_TASKS = {
    "narrativeqa": ("token_f1", 128),
    "qasper": ("token_f1", 128),
    "multifieldqa_en": ("token_f1", 64),
    "hotpotqa": ("token_f1", 32),
    "2wikimqa": ("token_f1", 32),
    "musique": ("token_f1", 32),
    "triviaqa": ("token_f1", 32),
    "gov_report": ("longbench_rouge_l", 512),
    "qmsum": ("longbench_rouge_l", 512),
    "multi_news": ("longbench_rouge_l", 512),
    "samsum": ("longbench_rouge_l", 128),
    "trec": ("classification", 64),
    "passage_count": ("count", 32),
    "passage_retrieval_en": ("paragraph", 32),
    "multifieldqa_zh": ("chinese_f1", 64),
    "dureader": ("chinese_rouge_l", 128),
    "vcsum": ("chinese_rouge_l", 512),
    "lsht": ("classification", 64),
    "passage_retrieval_zh": ("paragraph", 32),
    "lcc": ("code_similarity", 64),
    "repobench-p": ("code_similarity", 64),
}
_TOLD_BEFORE = {"triviaqa", "samsum", "trec", "lsht", "vcsum", "lcc", "repobench-p"}
_FIRST_LINE = {"triviaqa", "samsum", "trec", "lsht"}
_TEMPLATES = ("dataset2prompt.json", "prompts.json")


def cases(folder: Path) -> Iterator[Case]:
    templates = _templates(folder)
    for row in rows(folder):
        task = row.text("dataset").removesuffix("_e")
        if task not in _TASKS:
            raise row.wrong(f"is of the task {task!r}, which has no metric here (known: {', '.join(_TASKS)})")
        if "{context}" not in templates.get(task, ""):
            raise row.wrong(f"is of the task {task!r}, which has no template with {{context}} in {_TEMPLATES[0]}")
        name = row.text("_id", "id")
        yield Case(task, f"{task}-{name}", row.text("context"), (_question(row, task, name, templates[task]),))


def _question(row: Row, task: str, name: str, template: str) -> Question:
    metric, longest = _TASKS[task]
    given = row.text("input") if row.has("input") else ""
    before, _, after = template.partition("{context}")
    told = f"{before.strip()}\n\n{after}" if task in _TOLD_BEFORE else after
    prompt = told.replace("{input}", given).strip()
    classes = tuple(map(str, row.items("all_classes"))) if metric == "classification" else ()
    references = tuple(map(str, row.items("answers")))
    if not references:
        raise row.wrong("has no answers")
    measure = Measure(metric, references, classes=classes)
    return Question(name, given.strip() or prompt, prompt, (measure,), longest, task in _FIRST_LINE)


def _templates(folder: Path) -> dict[str, str]:
    for name in _TEMPLATES:
        for path in sorted(folder.rglob(name)):
            value = read_json(path)
            if isinstance(value, dict):
                return {str(task): str(text) for task, text in value.items()}
    raise UsageError(f"{folder} has no {_TEMPLATES[0]} with LongBench's templates: put it beside the data.")
