"""``longctx eval SUITE``: questions about long documents, answered by every system at the same budget and scored.

Owns the job: which questions are drawn, which rows are missing, and one compiled document for all its questions. Works
on the public face; formats, systems, metrics, rows and the page each have a module of their own.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import longctx
from longctx.errors import BadOption, DoesNotFit, UnknownMethod, UsageError

from .cases import Case, Question
from .long_qa_report import write_report
from .long_qa_rows import Key, about_question, about_run, digest, held
from .rows import alone
from .scoring import graded, ready, scores
from .systems import SYSTEMS, answer, budgets_of, check, show, warm

Progress = Callable[[str, int, int], None]
Cell = tuple[str, int | None]  # a system and its budget


@dataclass(frozen=True, slots=True)
class Job:
    """One suite on one model. ``settings`` say how the reader is made and are written into every row.

    ``sample`` questions are drawn by ``seed`` from all of the suite; ``max_new_tokens`` lowers the suite's own limits;
    ``keep_answers`` keeps what the model said as text, which may quote the data.
    """

    suite: str
    data: Path
    out: Path
    settings: Mapping[str, Any]
    systems: Sequence[str] = SYSTEMS
    budgets: Sequence[int] = (2048,)
    sample: int = 100
    seed: int = 7
    max_new_tokens: int | None = None
    keep_answers: bool = False

    @property
    def rows(self) -> Path:
        """The file of rows: one for each suite and model."""
        return self.out / f"{self.suite}-{Path(str(self.settings['model'])).name}.jsonl"

    @property
    def cells(self) -> list[Cell]:
        """Every system at every budget it can have, in order and once."""
        found = [(name, at) for name in self.systems for at in budgets_of(name, tuple(sorted(self.budgets)))]
        return list(dict.fromkeys(found))

    def run(self, make_reader: Callable[[], longctx.Reader], progress: Progress | None = None) -> Path:
        """Append the missing rows, write the page ``out``/SUITE.md and return the rows' file.

        Raises ArtifactError before anything is asked when the file holds rows of other conditions.
        """
        cases, population = self.drawn()
        self.out.mkdir(parents=True, exist_ok=True)
        reader = make_reader()
        run = self.about(reader, population)
        done = held(self.rows, run, cases)
        left = [case for case in cases if self.missing(case, done)]
        if left:
            warm(reader, left[0].text, self.systems)
        total, asked = sum(len(case.questions) for case in left), 0
        with alone(self.rows), self.rows.open("a", encoding="ascii") as file:
            for case in left:
                for row in self._rows(reader, case, done):
                    file.write(json.dumps(run | row, allow_nan=False) + "\n")
                    file.flush()
                asked += len(case.questions)
                if progress is not None:
                    progress("questions", asked, total)
        write_report(self.out, self.suite)
        return self.rows

    def drawn(self) -> tuple[list[Case], int]:
        """The documents with the questions that were drawn, and how many questions the suite has in all.

        Raises UnknownMethod, BadOption or UsageError for what can be refused before a model is loaded.
        """
        for name in self.systems:
            check(name)
        most = 1 if self.max_new_tokens is None else self.max_new_tokens
        if min(self.sample, most, *self.budgets) < 1 or not self.budgets:
            raise BadOption(
                f"budgets={self.budgets}, sample={self.sample} and max_new_tokens={self.max_new_tokens} must be at "
                "least 1, and budgets name some count."
            )
        every = read_cases(self.suite, self.data)
        cases = draw(every, self.sample, self.seed)
        if self.max_new_tokens is not None:
            cases = [_limited(case, self.max_new_tokens) for case in cases]
        return cases, sum(len(case.questions) for case in every)

    def about(self, reader: Any, population: int) -> dict[str, Any]:
        """What every row says of the run."""
        label = Path(str(self.settings["model"])).name
        return about_run(reader, self.suite, label, self.settings, self.seed, population)

    def missing(self, case: Case, done: set[Key]) -> list[tuple[Question, str, int | None]]:
        """The rows of one document that are not there."""
        return [
            (question, name, budget)
            for question in case.questions
            for name, budget in self.cells
            if (case.name, question.id, name, budget) not in done
        ]

    def _rows(self, reader: Any, case: Case, done: set[Key]) -> Iterator[dict[str, Any]]:
        """The missing rows of one document, which is compiled when the first of them is made."""
        book, seconds = None, 0.0
        for question, name, budget in self.missing(case, done):
            if book is None:
                started = time.perf_counter()
                book = reader.compile(longctx.Document.from_text(case.text, case.name))
                seconds = time.perf_counter() - started
            about = about_question(case, question)
            about |= {"system": name, "budget": budget, "document_tokens": book.tokens}
            yield about | self._measured(reader, book, question, (name, budget), seconds)

    def _measured(self, reader: Any, book: Any, question: Question, cell: Cell, compiling: float) -> dict[str, Any]:
        """What one system showed and the model said of it; what does not fit becomes a row without a score."""
        try:
            shown = show(reader, book, question, *cell)
            said = answer(reader, shown, question)
        except DoesNotFit as error:
            return {"error": {"kind": type(error).__name__, "message": str(error)}}
        found = {name: round(value, 6) for name, value in scores(question, said.text).items()}
        first = question.measures[0].name
        seconds = {"compile": compiling, "select": shown.seconds, "answer": said.seconds}
        return {
            "metric": first,
            "graded": graded(question),
            "score": found[first],
            "scores": found,
            "context_tokens": shown.tokens,
            "prompt_tokens": said.prompt_tokens,
            "new_tokens": said.new_tokens,
            "tokens_read": shown.tokens_read,
            "spans": shown.spans,
            "answer_sha256": digest(said.text),
            **({"answer": said.text} if self.keep_answers else {}),
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "warnings": list(shown.warnings),
        }


def suites() -> list[str]:
    """The suites there are, by file name."""
    folder = Path(__file__).parent / "suites"
    return sorted(info.name for info in pkgutil.iter_modules([str(folder)]))


def read_cases(suite: str, data: Path) -> list[Case]:
    """All documents of a suite in ``data``/SUITE, or in ``data`` where that is the suite's folder or holds row files.

    Raises UnknownMethod for a suite that there is not, UsageError for rows that are not there or not in its format, and
    MissingExtra for questions that cannot be scored with what is installed.
    """
    if suite not in suites():
        raise UnknownMethod("suite", suite, suites())
    module = importlib.import_module(f".suites.{suite}", __package__)
    folder = data / suite
    if not folder.is_dir():
        if data.name != suite and not any(path.suffix in (".json", ".jsonl") for path in data.glob("*.json*")):
            raise UsageError(f"{data} has neither a folder {folder} nor rows of its own: put the suite's data in one.")
        folder = data
    found = [case for case in module.cases(folder) if case.questions]
    if not found:
        raise UsageError(f"{folder} has no question that {suite} can score.")
    names: set[tuple[str, str]] = set()
    for case in found:
        for question in case.questions:
            which = f"the question {question.id!r} of the document {case.name!r}"
            if (case.name, question.id) in names:
                raise UsageError(f"{folder} has {which} twice.")
            if not (question.query.strip() and question.prompt.strip() and case.text.strip()):
                raise UsageError(f"{folder} has {which} without text.")
            names.add((case.name, question.id))
            ready(question)
    return found


def draw(cases: Sequence[Case], sample: int, seed: int) -> list[Case]:
    """``sample`` questions of all of them, drawn by ``seed``, with their documents; a larger sample holds a smaller."""
    every = [(at, number) for at, case in enumerate(cases) for number in range(len(case.questions))]
    random.Random(seed).shuffle(every)
    kept = set(every[:sample])
    chosen = [
        replace(case, questions=tuple(q for number, q in enumerate(case.questions) if (at, number) in kept))
        for at, case in enumerate(cases)
    ]
    return [case for case in chosen if case.questions]


def _limited(case: Case, most: int) -> Case:
    changed = tuple(replace(question, max_new_tokens=min(most, question.max_new_tokens)) for question in case.questions)
    return replace(case, questions=changed)
