"""``longctx bench copies``: what it takes to draft from a long text: its index, a look-up in it, and a draft.

Owns the clock, the text and the row. No pass of a model is made: of the model only the tokenizer is asked.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import longctx
from longctx import plugins
from longctx.drafts import Budget, DraftSource
from longctx.errors import BadOption
from longctx.suffixes import LONGEST, SuffixIndex

from . import processes, python_reference
from .rows import here_and_now

_DEPTH = 16  # tokens that a draft looks ahead


def run_copies(
    model: str, out: Path, *, data: Path | None = None, tokens: int = 1_000_000, steps: int = 1000, nodes: int = 16
) -> Path:
    """Append one row to ``out``/copies.jsonl and return that file.

    The text is that of ``data`` (None: the Python language reference) in tokens of ``model``. Where it has fewer than
    ``tokens`` it comes again, each time with all ids exchanged for others: as long and as repetitive as a text of that
    length, and no copy of itself. The index is made in a process of its own, whose most memory above what it had with
    the text loaded is ``peak_bytes`` (None where the system does not tell). Then ``steps`` places of the text, drawn by
    a fixed seed, are looked up by the tokens before them, and a draft of ``nodes`` nodes is made behind each.
    """
    if min(tokens, steps, nodes) < 1 or tokens <= LONGEST:
        raise BadOption(f"steps={steps} and nodes={nodes} must be at least 1, and tokens={tokens} more than {LONGEST}.")
    reader = longctx.Reader.from_pretrained(model, encoder=None, calibration=None)
    text = python_reference.text() if data is None else longctx.read(data).text
    ids = reader.tokenizer(text, verbose=False)["input_ids"]
    found = processes.call(__name__, "measure", [ids, tokens, int(max(ids)) + 1, steps, nodes])
    row = {
        "bench": "copies",
        "model": Path(model).name,
        "text": "python reference" if data is None else data.name,
        "tokens": tokens,
        "steps": steps,
        "nodes": nodes,
        **found,
        **{name: version(name) for name in ("torch", "numpy")},
        "longctx": longctx.__version__,
        **here_and_now(),
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / "copies.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return path


def measure(ids: Sequence[int], tokens: int, vocabulary: int, steps: int, nodes: int) -> dict[str, Any]:
    """In this process: the index of the text, look-ups and drafts."""
    text = lengthened(np.asarray(ids, np.int32), tokens, vocabulary)
    before = processes.memory(reset=True)
    started = time.perf_counter()
    index = SuffixIndex(text)
    _ = index.order  # made when it is first asked for
    seconds = time.perf_counter() - started
    peak = processes.memory()
    places = np.random.default_rng(0).integers(LONGEST, tokens, steps).tolist()
    contexts = [text[at - LONGEST : at] for at in places]
    drafter, longest = plugins.load("drafters", "document"), list[int]()

    def look_up(context: NDArray[np.int32]) -> None:
        longest.append(max(length for _, length in index.matches(context.tolist(), drafter.places)))

    def draft(context: NDArray[np.int32]) -> Callable[[], object]:
        at_work = drafter.begin(DraftSource(context, vocabulary, text, index))
        return lambda: at_work.propose(Budget(nodes, _DEPTH))

    looked = [_timed(lambda context=context: look_up(context)) for context in contexts]  # type: ignore[misc]
    drafted = [_timed(draft(context)) for context in contexts]
    return {
        "different_tokens": len(np.unique(text)),
        "build_seconds": round(seconds, 3),
        "peak_bytes": None if before is None or peak is None else peak - before,
        "matched_tokens": statistics.median(longest),
        "places": drafter.places,
        "look_up_microseconds": _spread(looked),
        "draft_microseconds": _spread(drafted),
    }


def lengthened(ids: NDArray[np.int32], tokens: int, vocabulary: int) -> NDArray[np.int32]:
    """``tokens`` ids: ``ids``, then the same again under one exchange of all ids after another."""
    rng, parts, count = np.random.default_rng(0), [ids], len(ids)
    while count < tokens:
        parts.append(rng.permutation(vocabulary).astype(np.int32)[ids])
        count += len(ids)
    return np.concatenate(parts)[:tokens]


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _spread(seconds: Sequence[float]) -> Mapping[str, float]:
    """Median, and what nine and 99 of a hundred stay below."""
    ordered = sorted(seconds)
    at = {"median": statistics.median(ordered)} | {
        f"p{share}": ordered[min(len(ordered) - 1, share * len(ordered) // 100)] for share in (90, 99)
    }
    return {name: round(1e6 * value, 1) for name, value in at.items()}
