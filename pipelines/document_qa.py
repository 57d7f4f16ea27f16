"""Many questions about one set of documents: one compilation, one cited answer a row, resumable.

Owns the file of answers: which rows it has, what they were made with, and its last line. Knows readers by their public
face.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import longctx
from longctx.errors import ArtifactError, DoesNotFit, UsageError, naming

Progress = Callable[[str, int, int], None]
_FIRST = b'{"id": '  # how every row begins


@dataclass(frozen=True, slots=True)
class Question:
    """One question; without an id of its own it is known by its number."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many rows there are now, how many were there before, and how many hold an error in place of an answer."""

    rows: int
    skipped: int
    failed: int


def read_questions(path: Path) -> list[Question]:
    """The questions of a file: a JSON object ``{"question": ..., "id": ...}`` on each line, or plain text.

    In a file named .jsonl every line is an object; elsewhere a line that begins with a brace is.

    Raises UsageError naming the line for anything else.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise UsageError(f"the questions {path} cannot be read ({error.strerror or error}).") from error
    found: dict[str, Question] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        plain = path.suffix.lower() != ".jsonl" and not line.strip().startswith("{")
        here = str(len(found) + 1)
        question = Question(here, line.strip()) if plain else _question(f"{path}, line {number}", line, here)
        if question.id in found:
            raise UsageError(f"{path}, line {number}: the id {question.id!r} is used twice.")
        found[question.id] = question
    if not found:
        raise UsageError(f"{path} has no questions in it.")
    return list(found.values())


def run(
    make_reader: Callable[[], longctx.Reader],
    documents: Sequence[longctx.Document],
    questions: Sequence[Question],
    out: Path,
    configuration: Mapping[str, Any],
    *,
    stored: Path | None = None,
    progress: Progress | None = None,
    **asked: Any,
) -> Outcome:
    """Answer what ``out`` does not hold yet, a row at a time; ``asked`` goes to ``Reader.ask``.

    ``stored`` is where ``documents`` are stored in compiled form: they are loaded from there and not compiled again.

    ``configuration`` is written into every row. Raises ArtifactError, before anything is loaded or written, when
    ``out`` holds rows of another configuration or of other documents, or is no file of answers. The reader is made
    only when something is left to answer.
    """
    made_with = {"configuration": dict(configuration), "documents": {d.id: _digest(d.text) for d in documents}}
    done, failed, whole = _held(out, questions, made_with)
    left = [question for question in questions if question.id not in done]
    if not left:
        return Outcome(len(done), len(done), failed)
    reader = make_reader()
    book = reader.compile(list(documents), progress=progress or False) if stored is None else reader.load(stored)
    with open(out, "r+b" if out.exists() else "xb") as file:
        file.truncate(whole)  # a row that was half written when the last run ended
        file.seek(whole)
        for number, question in enumerate(left, 1):
            row = {"id": question.id, "question": question.text, **_answered(reader, book, question, progress, asked)}
            failed += "error" in row
            line = json.dumps({**row, **made_with, "version": longctx.__version__}, allow_nan=False)
            with naming(out):
                file.write(line.encode("ascii") + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if progress is not None:
                progress("questions", number, len(left))
    return Outcome(len(done) + len(left), len(done), failed)


def _question(where: str, line: str, number: str) -> Question:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON ({error}).") from error
    text = row.get("question") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f'{where}: no object with text as its "question".')
    return Question(str(row.get("id", number)), text)


def _answered(
    reader: longctx.Reader, book: Any, question: Question, progress: Progress | None, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of one row; what is wrong with this one question becomes its row and does not stop the others."""
    try:
        return reader.ask(book, question.text, progress=progress or False, **asked).as_dict()
    except (UsageError, DoesNotFit) as error:
        return {"error": {"kind": type(error).__name__, "message": str(error)}}


def _held(out: Path, questions: Sequence[Question], made_with: Mapping[str, Any]) -> tuple[set[str], int, int]:
    """The ids of the whole rows in ``out``, how many of them hold an error, and the bytes that all rows take."""
    if out.exists() and not out.is_file():
        raise UsageError(f"--out {str(out)!r} is not a regular file.")
    try:
        data = out.read_bytes()
    except FileNotFoundError:
        if not out.absolute().parent.is_dir():
            raise UsageError(f"there is no folder {str(out.absolute().parent)!r} for {out.name!r}.") from None
        return set(), 0, 0
    whole = data.rfind(b"\n") + 1
    rest = data[whole:]
    if not (rest.startswith(_FIRST) or _FIRST.startswith(rest)):
        raise ArtifactError(f"{out} is not a file of answers. Name another --out; nothing was changed.")
    texts = {question.id: question.text for question in questions}
    done: set[str] = set()
    failed: set[str] = set()
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            row = json.loads(line)
            held = {key: row[key] for key in ("id", "question", *made_with)}
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{out}, line {number} is no row of answers. Name another --out; nothing was changed."
            ) from error
        apart = _differences(held, made_with)
        if texts.get(held["id"], held["question"]) != held["question"]:
            apart.append(f"question {held['id']!r} was {held['question']!r:.80}")
        if apart:
            raise ArtifactError(
                f"{out}, line {number} was made with other settings: {'; '.join(apart)}. Name another --out."
            )
        done.add(held["id"])
        if "error" in row:
            failed.add(held["id"])
    return done & texts.keys(), len(failed & texts.keys()), whole


def _differences(held: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What each key was and is, for every key that differs."""
    apart = []
    for group, values in now.items():
        for key in sorted({*values, *held[group]}):
            was, is_ = held[group].get(key), values.get(key)
            if was != is_ and group == "documents":
                apart.append(
                    f"document {key!r} {'is new' if was is None else 'is gone' if is_ is None else 'has changed'}"
                )
            elif was != is_:
                apart.append(f"{key} was {was!r} and is {is_!r}")
    return apart


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
