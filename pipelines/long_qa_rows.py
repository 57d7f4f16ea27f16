"""The file of rows of ``longctx eval SUITE``: what each row says of its run and question, and which rows there are.

Owns the conditions under which a file goes on: the same model, settings, versions, data and draw, or none of it is
touched. Rows hold hashes and offsets, never text of a document or of a reference. ``seconds`` and ``tokens_read`` of a
row depend on what its run had read of the document before; all else in it is that of a run that never stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import longctx
from longctx.errors import ArtifactError, UsageError

from .cases import Case, Question
from .rows import here_and_now

Key = tuple[str, str, str, int | None]
_MAY_DIFFER = ("machine", "date")


def key(row: Mapping[str, Any]) -> Key:
    return row["document"], row["question"], row["system"], row["budget"]


def about_run(
    reader: Any, suite: str, label: str, settings: Mapping[str, Any], seed: int, population: int
) -> dict[str, Any]:
    """What every row says of the run; models and encoders by name, never by path.

    The model's own device and dtype stand in the place of those that were asked for, which may say no more than "auto".
    """
    named = {k: Path(v).name if isinstance(v, str) and k in ("model", "encoder") else v for k, v in settings.items()}
    named |= {"device": reader.model.device.type, "dtype": str(reader.model.dtype).removeprefix("torch.")}
    return {
        "suite": suite,
        "model": label,
        "fingerprint": reader.fingerprint[:16],
        "window": reader.window,
        "configuration": named,
        "seed": seed,
        "population": population,
        "longctx": longctx.__version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
        **here_and_now(),
    }


def about_question(case: Case, question: Question) -> dict[str, Any]:
    """What a row says of its question, with the hashes by which other data would be noticed."""
    measures = [[m.metric, m.references, m.label, m.classes] for m in question.measures]
    return {
        "task": case.task,
        "document": case.name,
        "document_sha256": digest(case.text),
        "question": question.id,
        "question_sha256": digest(json.dumps([question.query, question.prompt, measures, question.first_line])),
        "max_new_tokens": question.max_new_tokens,
    }


def held(path: Path, run: Mapping[str, Any], cases: Sequence[Case], repair: bool = True) -> set[Key]:
    """The keys of the rows in ``path``; ``repair`` drops a last line cut short by an interruption from the file.

    Raises ArtifactError, and leaves the file as it is, when a row was made under other conditions or is none.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{str(path)!r} is not a regular file.")
    data = path.read_bytes() if path.exists() else b""
    whole = complete(data)
    now = {(case.name, q.id): about_question(case, q) for case in cases for q in case.questions}
    done: set[Key] = set()
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            apart = _differences(row, run) + _changes(row, now.get((row["document"], row["question"]), {}))
            done.add(key(row))
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}, line {number} is no row of this evaluation. Name another --out.") from error
        if apart:
            raise ArtifactError(
                f"{path}, line {number} was made under other conditions: {'; '.join(apart)}. Name another --out."
            )
    if repair and len(whole) < len(data):
        os.truncate(path, len(whole))
    return done


def complete(data: bytes) -> bytes:
    """The lines of a file of rows that end; a last one cut short by an interruption is no row."""
    return data[: data.rfind(b"\n") + 1]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _differences(row: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """What each condition was and is, for every one that differs."""
    was = {**row["configuration"], **{name: row[name] for name in run if name != "configuration"}}
    now = {**run["configuration"], **{name: run[name] for name in run if name != "configuration"}}
    return [
        f"{name} was {was.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*was, *now})
        if name not in _MAY_DIFFER and was.get(name) != now.get(name)
    ]


def _changes(row: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    """What differs of the question, by name and without its text."""
    return [f"{name} of question {row['question']!r} has changed" for name in about if row[name] != about[name]]
