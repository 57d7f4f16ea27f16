"""What a row of a grid holds: what was asked, by hashes and offsets, what it took, and whether it may be compared.

Owns the fields, and that neither text nor paths are among them. Knows no process and no file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import longctx
from longctx.errors import ProgramError

from .bench_examples import Example, Model
from .bench_file import GridFile
from .bench_methods import Method, settings
from .haystack import digest
from .needle_scores import kept
from .needle_systems import turn
from .rows import Row

IDENTITY = ("model", "task", "length", "example", "method", "budget")
_PLACES = 4  # of a second


def key(model: Model, example: Example, method: Method) -> Row:
    """What tells a row from all others."""
    return {
        "model": model.name,
        "task": example.task,
        "length": example.length,
        "example": example.name,
        "method": method.name,
        "budget": method.budget,
    }


def made_with(grid: GridFile, model: Model, made: Mapping[str, Any], method: Method, requires: Sequence[str]) -> Row:
    """What must be the same for a row to stand beside those of another run."""
    return {
        "longctx": longctx.__version__,
        "requires": list(requires),
        "model_sha256": model.sha256,
        "method": settings(method),
        "task": dict(made),
        "max_new_tokens": grid.max_new_tokens,
        **{name: getattr(grid, name) for name in ("dtype", "device", "threads")},
    }


def asked(model: Model, example: Example) -> dict[str, Any]:
    """What a program is given: the text and question as they are, and as the ids of longctx's own prompt."""
    return {
        "text": example.text,
        "document": digest(example.text),
        "query": example.query,
        "question": example.prompt,
        "template": turn("{context}", "{question}"),
        "context_ids": model.context(example.text),
        "question_ids": model.question(example.prompt),
        "after_ids": model.after,
        "max_new_tokens": example.max_new_tokens,
    }


def about(given: Mapping[str, Any], example: Example) -> Row:
    """What was asked, without a word of it."""
    ids = [*given["context_ids"], *given["question_ids"], *given["after_ids"]]
    return {
        "seed": example.seed,
        "depth": example.depth,
        "metric": example.metric,
        "max_new_tokens": example.max_new_tokens,
        "document_sha256": given["document"],
        "question_sha256": digest(example.prompt),
        "prompt_tokens": len(ids),
        "prompt_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
        "evidence": [list(span) for span in example.evidence],
    }


def answered(example: Example, found: Mapping[str, Any], keep_answers: bool) -> Row:
    """The score of an answer and what it took. A method that changed nothing is refused and has no score."""
    spans = found.get("spans")
    share = None if spans is None else kept(example.evidence, spans)
    if "shown" in found and example.evidence:
        pieces = [" ".join(example.text[a:b].split()) for a, b in example.evidence]
        flat = " ".join(found["shown"].split())
        share = sum(piece in flat for piece in pieces) / len(pieces)
    unchanged = found.get("unchanged")
    row: Row = {
        "score": None if unchanged else round(example.score(found["text"]), 6),
        "kept": None if share is None else round(share, 6),
        "answer_sha256": digest(found["text"]),
        "measured": found["measured"],
        "spans": spans,
        "reused": found.get("reused", False),
        "warnings": len(found.get("warnings", ())),
        "seconds": {name: round(value, _PLACES) for name, value in found["seconds"].items()},
        **{name: found[name] for name in ("peak_bytes", "peak_of", "gpu_peak_bytes") if name in found},
    }
    if unchanged:
        row["refused"] = {"kind": "unchanged", "message": unchanged}
    return {**row, **({"answer": found["text"]} if keep_answers else {})}


def without_answer(error: ProgramError) -> Row:
    """A refusal stands; what died, hung or could not be installed is tried again by the next run."""
    said = {"kind": error.kind, "message": str(error)}
    return (
        {"score": None, "refused": said} if error.kind == "refused" else {"score": None, "error": said, "again": True}
    )


def without_paths(message: str, paths: Sequence[Path]) -> str:
    """``message`` with the names of files and folders in place of where they lie."""
    for path in sorted(paths, key=lambda path: -len(str(path))):
        message = message.replace(str(path), path.name)
    return message
