"""``longctx needle``: facts hidden in long texts, asked of every system under test; one row for each question.

Owns what a row holds and how its prompt is made again. Works on the public face: tasks, haystacks, the grid, systems
and the file of rows are modules of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import longctx
from longctx import plugins
from longctx.errors import ArtifactError, BadOption, DoesNotFit, EndpointError, LongctxError, UsageError

from .haystack import Count, Haystack, beginning, digest, rebuilt, sentences, sources
from .needle_grid import Grid, Place, Text, drawn_facts, texts
from .needle_scores import kept, said
from .needle_systems import Said, Spans, System, joined, turn
from .needles._nouns import Task
from .rows import Row, Rows, here_and_now, read

IDENTITY = ("task", "length", "seed", "fact", "system")
ROWS = "needle.jsonl"
KEPT = "of what was read"  # what `kept` of a row counts; in rows made without this word, what a selection held
_FAILURES = 3  # rows of a server in succession after which it is taken to be gone
Progress = Callable[[str, int, int], None]


def made_with(
    grid: Grid, model: str, tokenizer: str, haystack: Sequence[str], haystack_sha256: str | None
) -> dict[str, Any]:
    """What every row of one file was made with. ``tokenizer`` is a hash: lengths are counted in its tokens."""
    return {
        "longctx": longctx.__version__,
        **{name: version(name) for name in ("torch", "transformers")},
        "model": model,
        "tokenizer": tokenizer,
        "haystack": list(haystack),
        "haystack_sha256": haystack_sha256,
        "depths": grid.depths,
        "distractors": grid.distractors,
        "together": grid.together,
        "kept": KEPT,
    }


def rows_of(out: Path, systems: Sequence[System], common: Mapping[str, Any]) -> Rows:
    """The rows that ``out`` holds. Raises ArtifactError when they were made with something else than now."""
    settings = {system.name: system.settings for system in systems}

    def expected(row: Row) -> dict[str, Any]:
        return {**row["made_with"], **common, **settings.get(row["system"], {})}

    return Rows(out / ROWS, IDENTITY, expected)


def run(
    grid: Grid,
    systems: Sequence[System],
    haystack: Haystack,
    count: Count,
    rows: Rows,
    common: Mapping[str, Any],
    facts: Mapping[str, Any],
    progress: Progress | None = None,
) -> None:
    """Ask what ``rows`` does not hold yet, a row at a time; ``facts`` are written into each.

    Afterwards the grid's rows stand in its order, whenever each was made, and other rows before them.

    Raises EndpointError when a server answers nobody, at the end of a run in which it answered none of the rows that
    were made, and after _FAILURES of its rows in succession without an answer that it did not refuse for their own
    sake. A later run makes every row again to which a server gave no answer.
    """
    made = list(texts(grid, haystack, count))
    keys = [rows.key(key) for place, _ in made for system in systems for key in _keys(place, system)]
    with rows.alone():
        try:
            _run(made, systems, len(keys), rows, common, facts, progress)
        finally:
            rows.sort(keys)


def _keys(place: Place, system: System) -> list[Row]:
    """What tells the rows of one text and system from all others."""
    task, length, seed, group = place
    return [{"task": task, "length": length, "seed": seed, "fact": fact, "system": system.name} for fact in group]


def _run(
    made: Sequence[tuple[Place, Callable[[], Text]]],
    systems: Sequence[System],
    every: int,
    rows: Rows,
    common: Mapping[str, Any],
    facts: Mapping[str, Any],
    progress: Progress | None,
) -> None:
    done, failed = 0, dict.fromkeys((system.name for system in systems), 0)
    silent: dict[str, EndpointError | None] = {}  # how the first row of a server failed; None once it answered one
    for at, make in made:
        text: Text | None = None
        document: longctx.Document | None = None
        for system in systems:
            for place, key in enumerate(_keys(at, system)):
                done += 1
                if key in rows:
                    continue
                if text is None or document is None:
                    text = make()
                    document = longctx.Document.from_text(text.planted.text, f"{at[0]}, {at[1]} tokens, seed {at[2]}")
                row, failure = _row(text, place, document, system)
                rows.add({**key, **row, **facts, "made_with": {**common, **system.settings}})
                failed[system.name] = 0 if failure is None or failure.refused else failed[system.name] + 1
                if failure is None:
                    silent[system.name] = None
                elif not failure.refused:
                    silent.setdefault(system.name, failure)
                if failure is not None and (failure.closed or failed[system.name] >= _FAILURES):
                    raise failure
                if progress is not None:
                    progress("questions", done, every)
    for unanswered in filter(None, silent.values()):
        raise unanswered


def _row(text: Text, place: int, document: longctx.Document, system: System) -> tuple[Row, EndpointError | None]:
    """What was asked, given to read and said, with the recipe that makes the text again; and how a server failed.

    ``given_sha256`` is the hash of the prompt that the system was given, None where it was given none.
    """
    case, planted = text.cases[place][1], text.planted
    scoring = plugins.load("needles", text.task).scoring
    whole = digest(turn(planted.text, case.question))
    row: Row = {
        "depth": text.depths[place],
        "question": case.question,
        "answers": list(case.answers),
        "scoring": scoring,
        "document_tokens": planted.tokens,
        "recipe": {
            "haystack": "the task's own" if text.own else "named in made_with",
            "haystack_chars": planted.chars,
            "haystack_sha256": planted.haystack_sha256,
            "draws": text.draws,
            "inserted": [list(pair) for pair in planted.inserted],
            "prompt_sha256": whole,
        },
        "evidence": [list(span) for span in text.evidence[place]],
        "places": list(text.places[place]),
    }
    started = time.perf_counter()
    try:
        answer = system.answer(document, case.question)
    except (DoesNotFit, EndpointError) as error:
        failure = error if isinstance(error, EndpointError) else None
        return {**row, **_unanswered(error, failure, whole)}, failure
    except BadOption as error:
        if system.settings.get("kv") is None:
            raise
        # what a policy always reads can be more than its budget for one prompt, and not for others
        return {**row, **_unanswered(error, None, whole)}, None
    seconds = {**answer.seconds, "total": time.perf_counter() - started}
    found = {
        "answer": answer.text,
        "said": round(said(answer.text, case, scoring), 6),
        "kept": _kept(text.evidence[place], answer.read),
        "held": _kept(text.evidence[place], answer.selected),
        **_given(planted.text, case.question, answer, whole),
        "facts": dict(answer.facts),
        "warnings": list(answer.warnings),
        # like the seconds not the same after an interruption: what was read for another question is not read again
        "tokens_read": answer.tokens_read,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        **here_and_now(),
    }
    return {**row, **found}, None


def _unanswered(error: LongctxError, failure: EndpointError | None, whole: str) -> Row:
    """What a row holds in place of an answer. A server was given its prompt all the same."""
    row: Row = {
        "answer": None,
        "said": None,
        "kept": None,
        "held": None,
        "asked": failure is not None,
        "read": None,
        "given_sha256": None if failure is None else whole,
    }
    if failure is not None:
        row |= {"facts": {"retries": failure.retries}, "again": True}
    return {**row, "error": {"kind": type(error).__name__, "message": str(error)}}


def _given(text: str, question: str, answer: Said, whole: str) -> Row:
    """What the system was given of ``text``; ``whole`` is the hash of all of it with the question."""
    if answer.read is None:
        return {"asked": True, "read": None, "given_sha256": whole}
    found: Row = {
        "asked": bool(answer.read),
        "read": [list(span) for span in answer.read],
        "between": answer.between,
        "given_sha256": None,
    }
    if answer.read:
        found["given_sha256"] = digest(turn(joined(text, answer.read, answer.between), question))
    return found


def _kept(evidence: Sequence[tuple[int, int]], spans: Spans | None) -> float | None:
    if spans is None:
        return None
    share = kept(evidence, spans)
    return None if share is None else round(share, 6)


def given(path: Path, number: int, haystack: Sequence[Path]) -> tuple[str | None, tuple[str, ...]]:
    """The prompt that the system of row ``number`` was given, and what is to be said of it.

    It is the user's turn: what a model's chat template puts around it is the same for all. None, with the reason,
    where nothing was given. A row made before rows held what was given makes the whole text, and that is said.
    Raises as ``rebuild`` does.
    """
    row = _numbered(path, number)
    with _complete(path, number):
        if "given_sha256" not in row:
            text = _planted(path, number, row, haystack)
            return turn(text, row["question"]), _beforehand(number, row, text)
        if row["given_sha256"] is None:
            return None, (f"row {number} has no prompt: {_reason(row)}. --whole makes its text with the question.",)
        text = _planted(path, number, row, haystack)
        if row["read"] is not None:
            text = joined(text, row["read"], row["between"])
        prompt, wanted = turn(text, row["question"]), row["given_sha256"]
    _check(path, number, prompt, wanted)
    return prompt, ()


def rebuild(path: Path, number: int, haystack: Sequence[Path]) -> str:
    """The whole text of row ``number`` (counted from 1) of a file with its question, made again from its recipe.

    Raises UsageError for a row that there is not and ArtifactError when the text is another than the row was made with.
    """
    row = _numbered(path, number)
    with _complete(path, number):
        return turn(_planted(path, number, row, haystack), row["question"])


def _numbered(path: Path, number: int) -> Row:
    held = read(path)
    if not 1 <= number <= len(held):
        raise UsageError(f"{path} has {len(held)} rows; there is no row {number}.")
    return held[number - 1]


@contextmanager
def _complete(path: Path, number: int) -> Iterator[None]:
    """Inside, a field that a row lacks is an ArtifactError that names it."""
    try:
        yield
    except KeyError as error:
        raise ArtifactError(f"{path}, line {number} is no row of `longctx needle`: it has no {error}.") from error


def _planted(path: Path, number: int, row: Row, haystack: Sequence[Path]) -> str:
    """The text of a row with its needles in it. Raises ArtifactError for a haystack or a text that is another."""
    recipe, made_with, spec = row["recipe"], row["made_with"], row["task"]
    if recipe["haystack"] == "the task's own":
        shares = Grid(tasks=(spec,), lengths=(row["length"],), depths=made_with["depths"]).shares
        task: Task = plugins.load("needles", spec)
        distractors = task.distractors or 0 if made_with["distractors"] is None else made_with["distractors"]
        drawn = drawn_facts(task, spec, row["seed"], recipe["draws"], shares, distractors)
        if drawn.filler is None:
            raise ArtifactError(f"the task {spec!r} brings no haystack of its own any more.")
        pieces = sentences(drawn.filler())
    else:
        pieces = sources(haystack)
    bare = beginning(pieces, recipe["haystack_chars"])
    if digest(bare) != recipe["haystack_sha256"]:
        raise ArtifactError(
            f"row {number} was made with another haystack: {made_with['haystack']}. Name its files with --haystack."
        )
    text = rebuilt(bare, recipe["inserted"])
    _check(path, number, turn(text, row["question"]), recipe["prompt_sha256"])
    return text


def _check(path: Path, number: int, prompt: str, wanted: str) -> None:
    if digest(prompt) != wanted:
        raise ArtifactError(f"row {number} of {path} is damaged: its recipe makes another prompt than it was asked.")


def _reason(row: Row) -> str:
    """Why a system was given nothing."""
    if row.get("error") is not None:
        return f"its system refused the text ({row['error']['message'].rstrip('.')})"
    return "nothing in the text seemed related to the question, so the model was not asked"


def _beforehand(number: int, row: Row, text: str) -> tuple[str, ...]:
    """What is to be said of a row that does not hold what its system was given, where that was not the whole text."""
    selects = "budget" in row["made_with"]
    if not selects and row.get("error") is None and row.get("read") in (None, [[0, len(text)]]):
        return ()
    return (
        f"row {number} was made before rows held what a model was given: this is the whole text with the question, of "
        f"which {row['system']!r} may have been given a part.",
    )
