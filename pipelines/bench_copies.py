"""``longctx bench copies``: what it takes to draft from a long text: its index, a look-up in it, and a draft.

Owns the clock, the text and the row. Measures as a drafter of a generation would, by what every drafter is given.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import longctx
from longctx import Document, plugins
from longctx.errors import BadOption

from . import processes, python_reference
from .rows import here_and_now

_DEPTH = 16  # tokens that a draft looks ahead
_BEFORE = 64  # tokens before a place by which it is looked up
_SEAM = 2  # tokens that two parts may have less together than apart
_ALONE = {"add_special_tokens": False, "verbose": False}


def run_copies(
    model: str, out: Path, *, data: Path | None = None, tokens: int = 1_000_000, steps: int = 1000, nodes: int = 16
) -> Path:
    """Append one row to ``out``/copies.jsonl and return that file.

    The text is the beginning of that of ``data`` (None: the Python language reference), as long as ``tokens`` tokens.
    Where it is shorter it comes again, each time with all its words exchanged for one another: as repetitive as a text
    of that length, and no copy of itself. It is handed to a generation as a document, in a process of its own.
    ``peak_bytes`` are the most that making the index takes, the text in it included. Then ``steps`` places of the text,
    drawn by a fixed seed, are looked up by the tokens before them, and a draft of ``nodes`` nodes is made behind each.
    """
    if min(tokens, steps, nodes) < 1 or tokens <= _BEFORE:
        raise BadOption(f"steps={steps} and nodes={nodes} must be at least 1, and tokens={tokens} more than {_BEFORE}.")
    text = python_reference.text() if data is None else longctx.read(data).text
    found = processes.call(__name__, "measure", [model, text, tokens, steps, nodes])
    if "places" not in found:
        raise BadOption(f"{Path(model).name} decodes one token at a time here, so that nothing is drafted for it.")
    row = {
        "bench": "copies",
        "model": Path(model).name,
        "text": "python reference" if data is None else data.name,
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


def measure(model: str, text: str, tokens: int, steps: int, nodes: int) -> dict[str, Any]:
    """In this process: the index of the text, look-ups and drafts; nothing where nobody asks for drafts."""
    reader = longctx.Reader.from_pretrained(model, encoder=None, calibration=None)
    document = Document.from_text(lengthened(text, tokens, reader.tokenizer))
    prompt = reader.tokenizer("What is said of it?", return_tensors="pt")
    timing = Timing(steps, nodes)
    longctx.generate(
        reader.model, reader.tokenizer, prompt, [timing], document, max_new_tokens=4, eos_token_id=None,
        controller="fixed",
    )  # fmt: skip
    return timing.found


class Timing:
    """The drafter ``document``, which before its first draft notes what it takes to make its index and to use it."""

    needs: ClassVar[int] = 0

    def __init__(self, steps: int, nodes: int) -> None:
        self._steps, self._nodes = steps, nodes
        self.found: dict[str, Any] = {}

    def begin(self, source: Any) -> Timing:
        started = time.perf_counter()
        tokens = len(source.index.order)  # made when it is first asked for
        seconds = time.perf_counter() - started
        tracemalloc.start()  # once more: what the process had, and may use again, does not count
        _ = type(source.index)(source.document).order
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        self.found = {
            "tokens": tokens,
            "different_tokens": len(np.unique(source.document)),
            "build_seconds": round(seconds, 3),
            "peak_bytes": peak,
        }
        self._source, self._drafter = source, plugins.load("drafters", "document")
        self._at_work = self._drafter.begin(source)
        return self

    def propose(self, budget: Any) -> Any:
        if "places" not in self.found:
            self._measure(replace(budget, nodes=self._nodes, depth=_DEPTH))
        return self._at_work.propose(budget)

    def observe(self, verified: Any) -> None:
        self._at_work.observe(verified)

    def _measure(self, budget: Any) -> None:
        source, longest = self._source, list[int]()
        drawn = np.random.default_rng(0).integers(_BEFORE, len(source.document), self._steps).tolist()
        contexts = [source.document[at - _BEFORE : at] for at in drawn]

        def look_up(context: Any) -> None:
            found = source.index.matches(context.tolist(), self._drafter.places)
            longest.append(max(length for _, length in found))

        def draft(context: Any) -> Callable[[], object]:
            at_work = self._drafter.begin(replace(source, prompt=context))
            return lambda: at_work.propose(budget)

        looked = [_timed(lambda context=context: look_up(context)) for context in contexts]  # type: ignore[misc]
        drafted = [_timed(draft(context)) for context in contexts]
        self.found |= {
            "matched_tokens": statistics.median(longest),
            "places": self._drafter.places,
            "look_up_microseconds": _spread(looked),
            "draft_microseconds": _spread(drafted),
        }


def lengthened(text: str, tokens: int, tokenizer: Any) -> str:
    """``text``, then the same again under one exchange of all its words after another, cut behind ``tokens`` tokens."""
    pieces = re.split(r"(\W+)", text)
    words = sorted({piece for piece in pieces[::2] if piece})
    parts, rng, count = [text], random.Random(0), _count(text, tokenizer)
    while count < tokens:
        other = dict(zip(words, rng.sample(words, len(words)), strict=True))
        parts.append("\n" + "".join(other.get(piece, piece) for piece in pieces))
        count += max(1, _count(parts[-1], tokenizer) - _SEAM)
    made = "".join(parts)
    ends = tokenizer(made, return_offsets_mapping=True, **_ALONE)["offset_mapping"]
    return made[: ends[min(tokens, len(ends)) - 1][1]]


def _count(text: str, tokenizer: Any) -> int:
    return len(tokenizer(text, **_ALONE)["input_ids"])


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
