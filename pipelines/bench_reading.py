"""``longctx bench reading``: how fast segments are read, beside a stock forward and the linear layers alone.

Owns the clock. The three are timed in turn in one run, so that their ratios hold on a machine whose speed drifts.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import longctx
from longctx.backend.probe import Probe
from longctx.backend.tokens import Tokens
from longctx.reader import SEGMENT_TOKENS, Reader

from . import python_reference


def run_reading(
    model: str, out: Path, *, text: str = "", tokens: int = 4096, rounds: int = 5, segment_tokens: int = SEGMENT_TOKENS
) -> Path:
    """Append one row of medians and ranges, in tokens per second, to ``out``/reading.jsonl and return that file."""
    import torch

    reader = Reader.from_pretrained(model)
    ids = Tokens(reader.tokenizer).plain(text or python_reference.text())[:tokens]
    segments = [ids[i : i + segment_tokens] for i in range(0, len(ids) - segment_tokens + 1, segment_tokens)]
    total = len(segments) * segment_tokens
    probe = Probe(reader.model, Tokens(reader.tokenizer))
    with torch.inference_mode():
        timed = {
            "read": lambda: _read(probe, segments),
            "stock": lambda: _stock(reader.model, segments),
            "linear": _linear(reader.model, 4 * segment_tokens, total),
        }
        rates: dict[str, list[float]] = {name: [] for name in timed}
        for name in timed:  # once unmeasured: first calls allocate and pack
            timed[name]()
        for number in range(rounds):
            for name, work in timed.items():
                started = time.perf_counter()
                work()
                rates[name].append(total / (time.perf_counter() - started))
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    pairs = list(zip(rates["read"], rates["stock"], rates["linear"], strict=True))
    row = {
        "bench": "reading",
        "model": Path(model).name,
        "fingerprint": reader.fingerprint[:16],
        "dtype": str(reader.model.dtype),
        "segments": len(segments),
        "segment_tokens": segment_tokens,
        "rounds": rounds,
        "tokens_per_second": {name: _spread(values) for name, values in rates.items()},
        "read_to_stock": _spread([read / stock for read, stock, _ in pairs]),
        "read_to_linear": _spread([read / linear for read, _, linear in pairs]),
        "longctx": longctx.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "date": time.strftime("%Y-%m-%d"),
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / "reading.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return path


def _read(probe: Probe, segments: Sequence[Sequence[int]]) -> None:
    for _ in probe.read(segments):
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
        for _ in range(max(1, total // rows)):
            for layer in layers:
                layer(inputs[layer.in_features])

    return work


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }
