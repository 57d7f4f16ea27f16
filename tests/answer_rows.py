"""Rows of an evaluation of answers, as the job writes them, and those of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def made(system: str, question: int, score: float, **changes: Any) -> dict[str, Any]:
    """A row as the job writes them."""
    row = {
        "suite": "freeform", "model": "m", "fingerprint": "f", "window": 1000, "configuration": {"model": "m"},
        "seed": 7, "population": 9, "longctx": "0", "torch": "2", "transformers": "5", "machine": "x", "date": "d",
        "task": "t", "document": "d", "question": str(question), "system": system, "budget": 100,
        "document_tokens": 500, "metric": "contains", "graded": False, "score": score,
        "scores": {"contains": score, "token_f1": score / 2}, "context_tokens": 90, "prompt_tokens": 120,
        "new_tokens": 4, "tokens_read": 0, "spans": [[0, 1]],
        "seconds": {"compile": 2.5, "select": 0.25, "answer": 1.5},
    }  # fmt: skip
    return {**row, **changes}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
