"""What a job of ``longctx eval SUITE`` would take, before it is started: counted tokens and measured speeds.

Owns the sum. Tokens are counted with the model's own tokenizer; speeds are those of a piece of the first document.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import longctx
from longctx import Reader

from . import systems
from .cases import Case
from .long_qa import Job
from .long_qa_rows import held

_PIECE = 6_000  # characters of the first document that are read to measure
_NEW = 16  # tokens decoded to measure


@dataclass(frozen=True, slots=True)
class Estimate:
    """Sums over the rows that are missing. Seconds are rather too many: answers are taken to be of full length, and
    what a selector read of a document for one budget is taken to be read again for the next.
    """

    questions: int
    documents: int
    document_tokens: int
    rows: int
    most_shown_tokens: int
    most_new_tokens: int
    compile_seconds: float
    select_seconds: float
    answer_seconds: float
    total_seconds: float


@dataclass(frozen=True, slots=True)
class Speeds:
    """Seconds a token: of a document compiled, of a document selected from by a system, of a prompt, of an answer."""

    compile: float
    select: Mapping[str, float]
    prompt: float
    new: float


def estimate(job: Job, reader: Reader) -> Estimate:
    """The tokens and seconds of the rows that ``job`` would make. Nothing is written.

    Raises ArtifactError when the job could not go on with its file of rows.
    """
    cases, population = job.drawn()
    done = held(job.rows, job.about(reader, population), cases, repair=False)
    left = [(case, rows) for case in cases if (rows := job.missing(case, done))]
    if not left:
        return Estimate(0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0)
    speeds = measure(reader, left[0][0], job.systems)
    total = shown = new = 0
    select = 0.0
    for case, rows in left:
        size = _tokens(reader, case.text)
        total += size
        for question, name, budget in rows:
            shown += size if budget is None else min(size, budget)
            new += question.max_new_tokens
            select += speeds.select.get(name, 0.0) * size
    compiling, answering = total * speeds.compile, shown * speeds.prompt + new * speeds.new
    return Estimate(
        questions=len({(case.name, question.id) for case, rows in left for question, _, _ in rows}),
        documents=len(left),
        document_tokens=total,
        rows=sum(len(rows) for _, rows in left),
        most_shown_tokens=shown,
        most_new_tokens=new,
        compile_seconds=compiling,
        select_seconds=select,
        answer_seconds=answering,
        total_seconds=compiling + select + answering,
    )


def measure(reader: Reader, case: Case, names: Sequence[str]) -> Speeds:
    """Speeds on the beginning of one document; what is made once for a model is made before the clock starts."""
    query = case.questions[0].query
    systems.warm(reader, case.text, names)
    started = time.perf_counter()
    book = reader.compile(longctx.Document.from_text(case.text[:_PIECE], case.name))
    compiling = (time.perf_counter() - started) / book.tokens
    budget = min(systems.room_for_units(book), reader.longest_selection(query, _NEW))
    select = {}
    for name in filter(systems.is_selector, names):
        select[name] = reader.select(book, query, budget_tokens=budget, selector=name).seconds / book.tokens
    short = reader.ask(book, query, budget_tokens=budget, selector="head", max_new_tokens=1)
    long = reader.ask(book, query, budget_tokens=budget, selector="head", max_new_tokens=_NEW)
    first = short.timings["decode_seconds"]
    more = max(0.0, long.timings["decode_seconds"] - first)
    prompt_tokens, new_tokens = long.usage["prompt_tokens"], long.usage["new_tokens"]
    return Speeds(compiling, select, first / max(1, prompt_tokens), more / max(1, new_tokens - 1))


def _tokens(reader: Reader, text: str) -> int:
    ids: list[int] = reader.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return len(ids)
