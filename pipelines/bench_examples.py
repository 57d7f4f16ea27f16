"""What is asked in a grid: every method gets the same text, question and prompt, and is scored by the same rule.

Owns how needles and suites become examples, the hashes by which rows name them, and the model as all programs know it.
Knows no method and no row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx import plugins

from . import haystack as haystacks
from .bench_file import GridFile, NeedleTask, SuiteTask
from .cases import Case as Document
from .cases import Question
from .haystack import Count
from .long_qa import draw, read_cases
from .needle_grid import Text, texts
from .needle_scores import said
from .scoring import scores

Ids = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Model:
    """A model by its folder, which no row names, and how longctx puts a prompt together for it.

    The ids of a prompt are ``context(text) + question(question) + after``. ``sha256`` is that of the folder's files.
    """

    name: str
    folder: Path
    sha256: str
    count: Count
    context: Ids
    question: Ids
    after: list[int]


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one text. ``evidence`` are the characters that hold the answer, where they are known.

    ``made`` is what tells its task from another of the same name: a run goes on only where it has not changed.
    """

    task: str
    length: int | None
    name: str
    seed: int
    depth: float | None
    text: str
    query: str
    prompt: str
    max_new_tokens: int
    evidence: tuple[tuple[int, int], ...]
    metric: str
    score: Callable[[str], float]
    made: dict[str, Any]


def examples(grid: GridFile, model: Model) -> list[Example]:
    """All of the grid's examples, with lengths in tokens of the model. Raises UsageError for data that is not there."""
    found: list[Example] = []
    for task in grid.needles:
        found += _needles(task, model, grid.max_new_tokens)
    for suite in grid.suites:
        found += _suite(suite, grid.max_new_tokens)
    return found


def files_sha256(folder: Path) -> str:
    """One hash of the names and contents of all files in a model's folder."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        with path.open("rb") as file:
            own = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{own} {path.name}\n".encode())
    return whole.hexdigest()


def _needles(task: NeedleTask, model: Model, most_new: int) -> Iterator[Example]:
    grid = task.grid
    made = {
        "haystack": haystacks.named(task.haystack),
        "haystack_sha256": haystacks.contents(task.haystack),
        "depths": grid.depths,
        "distractors": grid.distractors,
        "together": grid.together,
    }
    hay = haystacks.Haystack(haystacks.sources(task.haystack), model.count)
    for _, make in texts(grid, hay, model.count):
        text = make()
        for place in range(len(text.cases)):
            yield _needle(text, place, most_new, made)


def _needle(text: Text, place: int, most_new: int, made: dict[str, Any]) -> Example:
    fact, case = text.cases[place]
    scoring = plugins.load("needles", text.task).scoring
    return Example(
        task=text.task,
        length=text.length,
        name=f"seed {text.seed}, fact {fact}",
        seed=text.seed,
        depth=text.depths[place],
        text=text.planted.text,
        query=case.question,
        prompt=case.question,
        max_new_tokens=most_new,
        evidence=text.evidence[place],
        metric=scoring,
        score=lambda answer: said(answer, case, scoring),
        made=made,
    )


def _suite(task: SuiteTask, most_new: int) -> Iterator[Example]:
    cases = draw(read_cases(task.suite, task.data), task.sample, task.seed)
    made = {"sample": task.sample, "data_sha256": _data_sha256(cases)}
    for case in cases:
        for question in case.questions:
            yield _question(task, case, question, most_new, made)


def _question(task: SuiteTask, case: Document, question: Question, most_new: int, made: dict[str, Any]) -> Example:
    first = question.measures[0].name
    return Example(
        task=f"{task.suite}/{case.task}",
        length=None,
        name=f"{haystacks.digest(case.text)[:12]}/{haystacks.digest(f'{question.id} {question.prompt}')[:12]}",
        seed=task.seed,
        depth=None,
        text=case.text,
        query=question.query,
        prompt=question.prompt,
        max_new_tokens=min(most_new, question.max_new_tokens),
        evidence=(),
        metric=first,
        score=lambda answer: scores(question, answer)[first],
        made=made,
    )


def _data_sha256(cases: Sequence[Document]) -> str:
    """Of all texts, questions and references drawn."""
    return haystacks.digest("\0".join(repr((case.text, case.questions)) for case in cases))
