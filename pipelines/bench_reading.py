"""``longctx bench reading``: how fast segments are read, beside a stock forward and the linear layers alone.

Owns the clock. The three are timed in turn in one run, so that their ratios hold on a machine whose speed drifts.
"""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import longctx

from . import python_reference
from .rows import here_and_now

# ours; a plain forward per segment; the linear layers on one segment's rows, and on those of a reading batch
_KINDS = ("read", "stock", "linear", "linear_batch")


def run_reading(model: str, out: Path, *, tokens: int = 4096, rounds: int = 5, segment_tokens: int = 512) -> Path:
    """Append one row of medians and ranges, in tokens per second, to ``out``/reading.jsonl and return that file.

    Every round times each of the three in a process of its own, in turn: what one does to the process, such as how it
    keeps memory, cannot help or hurt another. The text is the Python language reference.
    """
    rates: dict[str, list[float]] = {name: [] for name in _KINDS}
    facts: dict[str, Any] = {}
    for number in range(rounds):
        for kind in _KINDS:
            facts = _child(kind, model, tokens, segment_tokens)
            rates[kind].append(facts.pop("rate"))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    row = {
        "bench": "reading",
        "model": Path(model).name,
        **facts,
        "rounds": rounds,
        "tokens_per_second": {name: _spread(values) for name, values in rates.items()},
        **{
            f"read_to_{kind}": _spread([a / b for a, b in zip(rates["read"], rates[kind], strict=True)])
            for kind in _KINDS
            if kind != "read"
        },
        **here_and_now(),
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / "reading.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return path


def _child(kind: str, model: str, tokens: int, segment_tokens: int) -> dict[str, Any]:
    """What ``measure`` found in a process of its own."""
    asked = json.dumps([kind, model, tokens, segment_tokens])
    code = f"import json, sys; from {__name__} import measure; print(measure(*json.loads(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, asked], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(kind: str, model: str, tokens: int, segment_tokens: int) -> str:
    """Time one kind in this process: the median of three passes after an unmeasured one, as a line of JSON."""
    import torch

    # memory for no segment: reading stores nothing, so that every pass is a pass
    reader = longctx.Reader.from_pretrained(
        model, encoder=None, segment_tokens=segment_tokens, segment_memory_bytes=0, splitter="fixed:tokens=64"
    )
    text = python_reference.text()
    book = reader.compile(longctx.Document.from_text(text[: 4 * tokens]))
    segments = [book.segment_ids(segment).tolist() for segment in range(len(book.segments))]
    total = sum(map(len, segments))
    work: Callable[[], None]
    if kind == "read":
        work = functools.partial(_read, book)
    elif kind == "stock":
        work = functools.partial(_stock, reader.model, segments)
    else:
        rows = segment_tokens * (4 if kind == "linear_batch" else 1)
        total = rows * max(1, round(total / rows))  # whole batches: what is counted is what is computed
        work = _linear(reader.model, rows, total)
    seconds = []
    with torch.inference_mode():
        for _ in range(4):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
    return json.dumps(
        {
            "rate": total / statistics.median(seconds[1:]),
            "fingerprint": reader.fingerprint[:16],
            "dtype": str(reader.model.dtype),
            "segments": len(segments),
            "segment_tokens": segment_tokens,
            "longctx": longctx.__version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
    )


def _read(book: Any) -> None:
    for _ in book.read(range(len(book.segments))):
        pass


def _stock(model: Any, segments: Sequence[Sequence[int]]) -> None:
    """What a user's own loop does: one plain forward per segment, its keys and values kept."""
    import torch

    for segment in segments:
        model(input_ids=torch.tensor([list(segment)]), use_cache=True)


def _linear(model: Any, rows: int, total: int) -> Callable[[], None]:
    """All linear layers but the head on ``rows`` rows at a time: the bound that the matrix products set."""
    import torch

    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    inputs = {layer.in_features: torch.randn(rows, layer.in_features, dtype=model.dtype) for layer in layers}

    def work() -> None:
        for _ in range(total // rows):
            for layer in layers:
                layer(inputs[layer.in_features])

    return work


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }
