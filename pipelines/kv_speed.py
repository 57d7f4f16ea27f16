"""The speed half of ``longctx bench kv``: reading a context and decoding behind it, with the stock model and policies.

Owns the clock and the memory's peak. What reads is timed in a process of its own, in turn; what decodes in one process
over keys that were read once, in turn too, so that ratios hold on a machine whose speed drifts.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import longctx
import longctx.kv
from longctx import plugins
from longctx.errors import BadOption, UsageError

from . import processes, python_reference

STOCK = "stock"  # the model's own attention and cache
POLICIES = (
    STOCK, "full", "squeezed:keep=0.3333", "squeezed:keep=0.125", "squeezed:keep=0.0625", "longheads", "lm_infinite",
    "quest",
)  # fmt: skip
_TOUCHED = 4  # tokens decoded behind a context in the measurement of memory


def ids_of(tokenizer: Any, text: Path | None, tokens: int) -> list[int]:
    """The first ``tokens`` token ids of a file, or of the Python language reference. Raises UsageError for fewer."""
    try:
        found = python_reference.text() if text is None else text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{text} is not text in UTF-8 ({error}). Name another file with text=.") from error
    ids: list[int] = tokenizer(found, verbose=False)["input_ids"][:tokens]
    if len(ids) < tokens:
        raise UsageError(f"the text has {len(ids):,} tokens of this model and {tokens:,} are asked for.")
    return ids


def grows(policy: str) -> bool:
    """Whether a policy reads the context through itself, so that no other one's reading serves it."""
    return policy != STOCK and bool(plugins.resolve("kv", policy).grows)


def slots(policy: str, tokens: int) -> int:
    """The budget that a policy asks for, in slots of a KV head. Raises BadOption for a share that leaves no choice."""
    if policy == STOCK:
        return tokens
    method = plugins.resolve("kv", policy)
    if short := method.shortfall(tokens):
        raise BadOption(short)
    return int(method.slots(tokens))


def options(policy: str) -> dict[str, Any]:
    """All options of a policy, those that its name leaves out too."""
    return {} if policy == STOCK else dataclasses.asdict(plugins.resolve("kv", policy))


def distinct(policies: Sequence[str]) -> list[str]:
    """One of those that read and index a context alike: budgets of a policy that reads with full attention."""
    found: dict[tuple[str, ...], str] = {}
    for policy in policies:
        name, _, options = policy.partition(":")
        others = [o for o in options.split(",") if o.partition("=")[0].strip() not in ("keep", "budget", "")]
        found.setdefault((policy,) if grows(policy) else (name, *sorted(others)), policy)
    return list(found.values())


def child(policy: str, model: str, dtype: str, text: Path | None, tokens: int) -> dict[str, Any]:
    """What ``measure`` found in a process of its own. Raises ProgramError where that ends without an answer."""
    asked = [policy, model, dtype, None if text is None else str(text), tokens]
    found: dict[str, Any] = processes.call(__name__, measure.__name__, asked)
    return found


def measure(policy: str, model: str, dtype: str, text: str | None, tokens: int) -> dict[str, Any]:
    """Read and index ``tokens`` tokens in this process and decode a few.

    ``peak_bytes`` is the most memory of the process from the reading on, ``loaded_bytes`` what it had before; None
    where the system does not tell.
    """
    reader = longctx.Reader.from_pretrained(model, dtype=dtype, encoder=None, calibration=None)
    net = reader.model
    ids = ids_of(reader.tokenizer, None if text is None else Path(text), tokens)
    _pass(net, ids[:64])  # the first pass makes what later ones find
    loaded = processes.memory(reset=True)
    started = time.perf_counter()
    if policy == STOCK:
        cache = _pass(net, ids).past_key_values
        read = done = time.perf_counter()
        _decode(net, cache, ids[-1], _TOUCHED)
    else:
        times: dict[str, float] = {}

        def progress(stage: str, at: int, total: int) -> None:
            times[stage] = time.perf_counter()

        context = longctx.kv.compress(net, ids, policy, progress=progress)
        done = time.perf_counter()
        read = times["context"]
        with context.attached(net) as cache:
            _decode(net, cache, ids[-1], _TOUCHED)
    return {
        "prefill_seconds": read - started,
        "prefill_tokens_per_second": tokens / (read - started),
        "index_seconds": done - read,
        "loaded_bytes": loaded,
        "peak_bytes": None if loaded is None else processes.memory(),
    }


def decoding(
    model: Any,
    ids: Sequence[int],
    tile: int,
    policies: Sequence[str],
    repeats: int,
    steps: int,
    note: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """A row for every policy: tokens a second behind ``ids``, or behind ``tile`` of their keys, of each repeat.

    The stock model decodes by its own passes, and policies as in answers of a reader: by the library's plain loop.
    Behind tiled keys a policy has the budget it has behind ``ids``; those that read through themselves are left out.
    """
    reading = longctx.kv.read(model, list(ids))
    specs = {name: name if name == STOCK or not tile else fixed(name, len(ids)) for name in policies}
    if tile:
        left_out = [name for name in policies if grows(name)]
        note(f"not measured behind {tile:,} tiled tokens: {', '.join(left_out) or 'none'}")
        specs = {name: spec for name, spec in specs.items() if name not in left_out}
        reading = reading.repeated(tile // len(ids))
    contexts: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for name, spec in specs.items():
        if name != STOCK:
            started = time.perf_counter()
            made = longctx.kv.compress(model, list(ids), spec) if grows(name) else reading.compress(spec)
            contexts[name], seconds[name] = made, time.perf_counter() - started
    known = [*list(ids) * max(1, tile // len(ids)), ids[-1]]
    rates: dict[str, list[float]] = {name: [] for name in specs}
    read: dict[str, Any] = {}
    names = list(specs)
    for repeat in range(repeats):
        for name in [*names[repeat % len(names) :], *names[: repeat % len(names)]]:
            with _cache(model, reading, contexts.get(name)) as cache:
                if name == STOCK:
                    rates[name].append(_decode(model, cache, ids[-1], steps))
                    continue
                rates[name].append(_ours(model, cache, known, steps))
                read[name] = cache.report()
        note(f"repeat {repeat + 1} of {repeats} behind {tile or len(ids):,} tokens")
    for name in specs:
        report, context = read.get(name), contexts.get(name)
        yield {
            "method": name,
            "slots": slots(name, len(ids)) if name != STOCK else tile or len(ids),
            "read_keys": None if report is None else report.read_keys,
            "read_share": None if report is None else report.read_share,
            "lookup_bytes": None if context is None else context.lookup_bytes,
            "context_bytes": None if context is None else context.nbytes,
            "made_seconds": seconds.get(name),
            "tokens_per_second": rates[name],
            "median": statistics.median(rates[name]),
            "least": min(rates[name]),
            "most": max(rates[name]),
            "warnings": [] if context is None else list(context.warnings),
        }


def fixed(policy: str, tokens: int) -> Any:
    """The policy with the budget that it has for ``tokens``, whatever the length it is used at."""
    method = plugins.resolve("kv", policy)
    known = {field.name for field in dataclasses.fields(method)}
    return dataclasses.replace(method, budget=method.slots(tokens), keep=None) if "budget" in known else method


@contextmanager
def _cache(model: Any, reading: Any, context: Any) -> Iterator[Any]:
    if context is None:
        yield reading.stock()
        return
    with context.attached(model) as cache:
        yield cache


def _decode(model: Any, cache: Any, token: int, steps: int) -> float:
    """Tokens a second of ``steps`` greedy passes of one token each, behind one that is not timed."""
    token = _next(model, cache, token)
    started = time.perf_counter()
    for _ in range(steps):
        token = _next(model, cache, token)
    return steps / (time.perf_counter() - started)


class _Clock:
    """Notes when tokens come: a streamer as those of transformers."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """What is known when the last token comes is all there is to know."""


def _ours(model: Any, cache: Any, ids: Sequence[int], steps: int) -> float:
    """The same behind a context by the library's plain loop; ``ids`` are the context's and one token more."""
    import torch

    clock, prompt = _Clock(), torch.tensor([list(ids)], device=model.device)
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        past_key_values=cache,
        custom_generate=longctx.speculative((), streamer=clock, on_end=lambda stats, warnings: None),
        do_sample=False,
        min_new_tokens=steps + 2,
        max_new_tokens=steps + 2,
    )
    return steps / (clock.times[-1] - clock.times[-1 - steps])


def _next(model: Any, cache: Any, token: int) -> int:
    return int(_pass(model, [token], past_key_values=cache).logits[0, -1].argmax())


def _pass(model: Any, ids: Sequence[int], **given: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.tensor([list(ids)], device=model.device), use_cache=True, logits_to_keep=1, **given)
