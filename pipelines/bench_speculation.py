"""``longctx bench speculation``: tokens a second of drafted decoding beside Hugging Face's own, per group of prompts.

Owns the clock and the rows. All methods answer a prompt one after another before the next prompt comes, so that their
ratios hold on a machine whose speed drifts: an interrupted run goes on with whole prompts. A row says whether its
tokens are those of plain greedy decoding. A method that drafted nothing in a whole run is refused.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import longctx
from longctx import plugins
from longctx.errors import EmptyInput, UsageError

from . import processes, python_reference
from .haystack import digest
from .peers._models import Passes
from .rows import Row, Rows, here_and_now

IDENTITY = ("prompt", "method")
LOOKUPS = ("5,2", "5,3", "10,2", "10,3", "20,2", "20,3")  # tokens drafted, longest n-gram matched
_WARM, _LONG = 24, 24  # answers before the first that is timed, at the most, and their tokens
_ASKED = 0.5  # seconds of drafting: so many are spent on it only where the model is asked what follows which token
_PLAIN = ("hf", "none")  # methods that draft nothing, and should not
_PASSAGE_CHARS = 1200
_TASKS = {
    "quote": "Repeat the text above word for word.",
    "summary": "Summarise the text above in a few sentences.",
    "question": "What does the text above say about names? Answer with sentences from it.",
    "free": "Write a short story about a lighthouse. Ignore the text above.",
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, and the group whose mean it belongs to."""

    group: str
    text: str


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer: its new tokens, how many came first and when, when the last came, and what the method tells."""

    tokens: list[int]
    first: int
    first_seconds: float
    seconds: float
    facts: dict[str, Any]


class Watch:
    """A streamer that notes when tokens come; the first that it gets is the prompt."""

    def __init__(self) -> None:
        self.came: list[tuple[float, int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.came.append((time.perf_counter(), value.numel()))

    def end(self) -> None:
        """Nothing is shown."""

    def timed(self, started: float, tokens: list[int], facts: dict[str, Any]) -> Timed:
        ended = time.perf_counter()
        at, count = self.came[1]
        return Timed(tokens, count, at - started, ended - started, facts)


Method = Callable[[Any, int, int], Timed]
"""Prompt ids, the most new tokens, and the seed where tokens are drawn -> the answer."""


def run_speculation(
    model: str,
    out: Path,
    *,
    data: Path | None = None,
    dtype: str = "auto",
    max_new_tokens: int = 128,
    prompts_per_group: int = 8,
    stacks: Sequence[str] | None = None,
    lookups: Sequence[str] = LOOKUPS,
    temperature: float = 0.0,
    seed: int = 0,
) -> Path:
    """Append the missing rows, one for every prompt and method, to ``out``/speculation.jsonl and return that file.

    ``data`` is a file of JSON objects with "group" and "prompt" on each line; without it, passages of the Python
    language reference are quoted, summarised, asked about and ignored. ``stacks`` are drafters as on the command line
    ("document+ngram"); by default none, each one alone, and "auto". ``lookups`` are settings of Hugging Face's prompt
    lookup, tokens drafted and the longest n-gram matched, or "none" alone. Above ``temperature`` 0 every method draws,
    all with ``seed`` plus the number of the prompt, and answers are held against those of the first stack instead of
    Hugging Face's, which draws other tokens from the same law.

    A prompt that lacks a method's row is answered by all of them again, for ratios are of one run. When every prompt is
    answered, the rows of a method that drafted no token for any of them say that they are refused, and stderr says so.
    Raises UnknownMethod or BadOption for a stack that there is not, before anything is loaded, and ArtifactError,
    before anything is written, for rows of another model, prompts, methods or settings.
    """
    names = ["none", *plugins.names("drafters"), "auto"] if stacks is None else list(stacks)
    for drafter in [drafter for stack in names for drafter in _stack(stack) if drafter != "auto"]:
        plugins.resolve("drafters", drafter)
    prompts = read(data) if data is not None else built_in(prompts_per_group)
    reader = longctx.Reader.from_pretrained(model, dtype=dtype, encoder=None, calibration=None)
    methods = methods_of(reader.model, reader.tokenizer, names, lookups, temperature)
    made: Row = {
        "longctx": longctx.__version__,
        **{name: version(name) for name in ("torch", "transformers")},
        "model": Path(model).name,
        "fingerprint": reader.fingerprint[:16],
        "dtype": str(reader.model.dtype).removeprefix("torch."),
        "device": reader.model.device.type,
        "threads": torch.get_num_threads(),
        "methods": list(methods),
        "max_new_tokens": max_new_tokens,
        **({"temperature": temperature, "seed": seed} if temperature else {}),
        "prompts_sha256": digest(json.dumps([[prompt.group, prompt.text] for prompt in prompts])),
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / "speculation.jsonl"
    rows = Rows(path, IDENTITY, lambda row: made)
    _warm(reader)
    with rows.alone():
        for number in _left(rows, len(prompts), list(methods)):
            drawn = (names[0], seed + number) if temperature else ("hf", None)
            for row in rows_of(prompts[number], number, reader.tokenizer, methods, max_new_tokens, *drawn):
                rows.add({"bench": "speculation", **row, **here_and_now(), "made_with": made})
            _say(f"prompt {number + 1} of {len(prompts)}")
        _refuse(rows)
    return path


def _warm(reader: Any) -> None:
    """Afterwards nothing is left that is tried once for a model or that drafters ask it in its first long answers."""
    for _ in range(_WARM):
        made = longctx.generate(
            reader.model, reader.tokenizer, [1, 2, 3], max_new_tokens=_LONG, eos_token_id=None, controller="fixed"
        )
        if made.stats.seconds["draft"] < _ASKED:
            return


def _left(rows: Rows, prompts: int, methods: Sequence[str]) -> list[int]:
    """The prompts that lack a row; the others of their rows are not held any longer, for ratios are of one run."""
    asked = [{(number, method) for method in methods} for number in range(prompts)]
    left = [number for number, keys in enumerate(asked) if not keys <= rows.rows.keys()]
    rows.drop([key for key in rows.rows if key[0] in left])
    return left


def _refuse(rows: Rows) -> None:
    """Afterwards the rows of every method that drafted nothing say so and have no speed; stderr names it."""
    for name in idle(list(rows.rows.values())):
        own = [row for row in rows.rows.values() if row["method"] == name]
        said = f"no token was drafted for any of {len(own)} prompts"
        _say(f"warning: {name}: {said}. Its rows are refused.")
        refused = {"tokens_per_second": None, "refused": {"kind": "unchanged", "message": said}}
        if fresh := [row | refused for row in own if "refused" not in row]:
            rows.renew(fresh)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def idle(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The methods of ``rows`` that are there to draft and drafted nothing in any of them."""
    drafted: dict[str, int] = {}
    for row in rows:
        if "drafted" in row and row["method"] not in _PLAIN:
            drafted[row["method"]] = drafted.get(row["method"], 0) + row["drafted"]
    return [name for name, tokens in drafted.items() if not tokens]


def read(path: Path) -> list[Prompt]:
    """The prompts of a file. Raises UsageError naming the line of one that is none, EmptyInput if there are none."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            found.append(Prompt(str(row["group"]), str(row["prompt"])))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f'{path}, line {number}: no "group" and "prompt" in it ({error}).') from error
    if not found:
        raise EmptyInput(f'{path} is empty: it needs a JSON object with "group" and "prompt" on each line.')
    return found


def built_in(per_group: int) -> list[Prompt]:
    """``per_group`` passages of the Python language reference with each of the tasks."""
    text = python_reference.text()
    step = max(1, (len(text) - _PASSAGE_CHARS) // max(1, per_group))
    passages = [text[at : at + _PASSAGE_CHARS] for at in range(0, step * per_group, step)]
    return [Prompt(group, f"{passage}\n\n{task}") for passage in passages for group, task in _TASKS.items()]


def methods_of(
    model: Any, tokenizer: Any, stacks: Sequence[str], lookups: Sequence[str] = LOOKUPS, temperature: float = 0.0
) -> dict[str, Method]:
    """Hugging Face's own decoding, its prompt lookup with several settings, and each of our stacks."""
    drawn: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    found: dict[str, Method] = {"hf": lambda ids, new, seed: _stock(model, ids, new, drawn, seed)}
    for setting in () if list(lookups) == ["none"] else lookups:
        try:
            tokens, ngram = (int(part) for part in setting.split(","))
        except ValueError as error:
            raise UsageError(
                f"lookups={setting!r} is not 'none', nor tokens and n-gram as in {LOOKUPS[0]!r}."
            ) from error
        options = {**drawn, "prompt_lookup_num_tokens": tokens, "max_matching_ngram_size": ngram}
        found[f"hf_lookup:{setting}"] = lambda ids, new, seed, options=options: _stock(model, ids, new, options, seed)  # type: ignore[misc]
    for stack in stacks:
        more = {"drafters": "auto" if stack == "auto" else _stack(stack), "temperature": temperature}
        found[stack] = lambda ids, new, seed, more=more: _drafted(model, tokenizer, ids, new, {**more, "seed": seed})  # type: ignore[misc]
    return found


def _stack(text: str) -> list[str]:
    return [] if text == "none" else text.split("+")


def rows_of(
    prompt: Prompt,
    number: int,
    tokenizer: Any,
    methods: Mapping[str, Method],
    max_new_tokens: int,
    against: str = "hf",
    seed: int | None = None,
) -> list[Row]:
    """One row a method. Decoding is what comes behind the first token, or behind all that came with it at once.

    ``same`` says whether the tokens are those of the method ``against``. ``peak_bytes`` is the most memory of the
    process while a method answered, ``loaded_bytes`` what it had before; None where the system does not tell. A
    ``seed`` is for methods that draw.
    """
    turns = [{"role": "user", "content": prompt.text}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = ids["input_ids"]
    names = list(methods)
    at = number % len(names)
    rows = []
    answers: dict[str, list[int]] = {}
    for name in [*names[at:], *names[:at]]:  # who comes first changes from prompt to prompt
        loaded = processes.memory(reset=True)
        made = methods[name](ids, max_new_tokens, 0 if seed is None else seed)
        peak = None if loaded is None else processes.memory()
        answers[name] = made.tokens
        decode, later = max(made.seconds - made.first_seconds, 1e-9), len(made.tokens) - made.first
        rows.append(
            {
                "group": prompt.group,
                "prompt": number,
                "method": name,
                **({} if seed is None else {"seed": seed}),
                "prompt_tokens": int(ids.shape[1]),
                "prompt_sha256": digest(json.dumps(ids[0].tolist())),
                "new_tokens": len(made.tokens),
                "seconds": made.seconds,
                "first_seconds": made.first_seconds,
                "decode_seconds": decode,
                "tokens_per_second": later / decode if later else None,
                "loaded_bytes": loaded,
                "peak_bytes": peak,
                **made.facts,
            }
        )
    for row in rows:
        row["same"] = answers[row["method"]] == answers[against]
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Group -> method -> geometric mean over prompts of its speed beside plain Hugging Face decoding.

    ``hf_lookup`` is prompt lookup with the setting that is best for the group.
    """
    speeds: dict[tuple[str, int, str], float] = {}
    for row in rows:
        if row["tokens_per_second"]:
            speeds[row["group"], row["prompt"], row["method"]] = row["tokens_per_second"]
    ratios: dict[str, dict[str, list[float]]] = {}
    for (group, prompt, method), speed in speeds.items():
        if (group, prompt, "hf") in speeds:
            ratios.setdefault(group, {}).setdefault(method, []).append(speed / speeds[group, prompt, "hf"])
    found = {g: {m: statistics.geometric_mean(values) for m, values in by.items()} for g, by in ratios.items()}
    for by in found.values():
        lookups = [value for method, value in by.items() if method.startswith("hf_lookup:")]
        if lookups:
            by["hf_lookup"] = max(lookups)
    return found


def _stock(model: Any, ids: Any, new: int, options: Mapping[str, Any], seed: int) -> Timed:
    ids, watch = ids.to(model.device), Watch()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices) if options["do_sample"] else nullcontext(), Passes(model) as passes:
        if options["do_sample"]:
            torch.manual_seed(seed)
        started = time.perf_counter()
        out = model.generate(ids, max_new_tokens=new, streamer=watch, **options)
        timed = watch.timed(started, out[0, ids.shape[1] :].tolist(), {})
    # a pass reads one token that is settled and those that were drafted behind it; the first reads the prompt
    drafted = sum(passes.tokens) - ids.shape[1] - (len(passes.tokens) - 1)
    return dataclasses.replace(timed, facts={"rounds": len(passes.tokens), "drafted": drafted})


def _drafted(model: Any, tokenizer: Any, ids: Any, new: int, options: Mapping[str, Any]) -> Timed:
    watch = Watch()
    started = time.perf_counter()
    made = longctx.generate(model, tokenizer, ids, max_new_tokens=new, streamer=watch, **options)
    told = made.stats.as_dict()
    facts = {key: told[key] for key in ("rounds", "drafted", "accepted", "accepted_by_source", "tokens_per_round")}
    phases = {f"{phase}_seconds": value for phase, value in told["seconds"].items()}
    return watch.timed(started, made.sequences[0, ids.shape[1] :].tolist(), {**facts, "phases": phases})
