"""``longctx bench kv``: what a bounded cache costs and saves, and what its answers lose, by policy and budget.

Owns the files of rows and what they were made with, so that an interrupted run goes on. Without a source speed is
measured, with one quality; the clock and the questions have modules of their own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import longctx
from longctx import plugins
from longctx.errors import ArtifactError, BadOption, UsageError

from . import kv_quality, kv_report, kv_sources, kv_speed
from .haystack import contents, digest, named
from .rows import Row, Rows, here_and_now

SPEED = ("measure", "context", "tile", "method", "round")
QUALITY = ("document", "question", "policy")


def run_kv(
    model: str,
    out: Path,
    *,
    source: str = "",
    data: Path | None = None,
    text: Path | None = None,
    contexts: Sequence[int] = (8_000, 16_000, 32_000),
    policies: Sequence[str] = (),
    dtype: str = "auto",
    tile: int = 0,
    rounds: int = 3,
    repeats: int = 5,
    steps: int = 16,
    sample: int = 150,
    shortest: int = 4_000,
    longest: int = 16_000,
    documents: int = 0,
    needles: int = 20,
    task: str = "number",
    seeds: Sequence[int] = (0, 1),
    seed: int = 7,
    max_new_tokens: int = 32,
    audit: int = 0,
    chat: bool = True,
) -> Path:
    """Append the missing rows to ``out``, write the page ``out``/kv.md of all of them and its pictures.

    Returns the rows' file. Raises MissingExtra, before any work, without the extra ``plots``.

    Speed: ``contexts`` are lengths in tokens of ``text`` (the Python language reference); the stock model and ``full``
    are read with ``rounds`` times in turn, others once; ``repeats`` times ``steps`` tokens are decoded behind each
    length, and behind the last one tiled to ``tile``.

    Quality: ``source`` is "needles" (``needles`` facts of ``task`` in one text, or in one each where a text holds one,
    for each of ``contexts`` and ``seeds``; ``text`` is the haystack), "xquad" (paragraphs from ``data``), or a suite of
    ``longctx eval``: ``sample`` questions, drawn by ``seed``, of its documents in ``data`` of ``shortest`` to
    ``longest`` tokens, or of so many ``documents`` drawn of these. ``audit`` k reads all keys too in every k-th pass,
    to measure what the bound of the unread share is worth. Without ``chat`` the model goes on from the text and the
    question, as a base model does.
    """
    kv_report.check()
    counts = dict(
        rounds=rounds, repeats=repeats, steps=steps, sample=sample, needles=needles, max_new_tokens=max_new_tokens
    )
    if min(*counts.values(), *contexts) < 1 or not contexts or documents < 0:
        given = ", ".join(f"{name}={value}" for name, value in counts.items())
        raise BadOption(
            f"contexts={tuple(contexts)}, {given} must all be at least 1, contexts name some length, and "
            f"documents={documents} is a number of them, or 0 for all."
        )
    for policy in policies:
        if policy != kv_speed.STOCK or source:
            plugins.resolve("kv", policy)
    for policy in () if source else policies or kv_speed.POLICIES:
        kv_speed.slots(policy, min(contexts))  # a budget too small for the shortest is known before hours of work
    if documents and source in ("", kv_sources.NEEDLES, kv_sources.PARAGRAPHS):
        raise BadOption(f"documents={documents} are drawn of a suite's, and source={source!r} is none.")
    if tile and (tile % contexts[-1] or source):
        raise BadOption(f"tile={tile} must be a multiple of the last context, {contexts[-1]}, and is for speed alone.")
    reader = longctx.Reader.from_pretrained(model, dtype=dtype, encoder=None, calibration=None)
    out.mkdir(parents=True, exist_ok=True)
    run = _Run(model, dtype, reader)
    if not source:
        path = out / f"kv-speed-{run.label}.jsonl"
        chosen = tuple(dict.fromkeys(policies or kv_speed.POLICIES))
        _speed(run, path, text, tuple(contexts), chosen, tile, rounds, repeats, steps)
    else:
        path = out / f"kv-{source}-{run.label}.jsonl"
        drawn: Iterator[kv_sources.Source]
        with_what: dict[str, Any] = {
            "source": source,
            "seed": seed,
            "max_new_tokens": max_new_tokens,
            "audit": audit,
            **({} if chat else {"chat": False}),
        }
        if source == kv_sources.NEEDLES:
            paths = [] if text is None else [text]
            with_what |= {
                "haystack": named(paths),
                "haystack_sha256": contents(paths),
                "task": task,
                "needles": needles,
            }
            drawn = kv_sources.needles(reader.tokenizer, task, contexts, seeds, needles, text)
        elif data is None or not data.is_dir():
            raise UsageError(f"the source {source!r} needs --data, the folder with its rows.")
        elif source == kv_sources.PARAGRAPHS:
            folder = data / source if (data / source).is_dir() else data
            drawn = kv_sources.paragraphs(reader.tokenizer, folder, contexts, sample, seed)
        else:
            with_what |= {"shortest": shortest, "longest": longest, **({"documents": documents} if documents else {})}
            drawn = kv_sources.suite(reader.tokenizer, source, data, sample, seed, shortest, longest, documents)
        chosen = tuple(dict.fromkeys((kv_quality.FULL, *(policies or kv_quality.POLICIES))))
        bench = kv_quality.Bench(reader.model, reader.tokenizer, chosen, max_new_tokens, audit, chat)
        _quality(run, path, bench, drawn, with_what)
    kv_report.write_report(out)
    return path


@dataclass(frozen=True, slots=True)
class _Run:
    """The model of a run and what all its rows say."""

    model: str
    dtype: str
    reader: Any

    @property
    def label(self) -> str:
        return Path(self.model).name

    def made_with(self, **more: Any) -> dict[str, Any]:
        import torch

        return {
            "longctx": longctx.__version__,
            **{name: version(name) for name in ("torch", "transformers")},
            "model": self.label,
            "fingerprint": self.reader.fingerprint[:16],
            "dtype": str(self.reader.model.dtype).removeprefix("torch."),
            "device": self.reader.model.device.type,
            "threads": torch.get_num_threads(),
            **more,
        }


def _speed(
    run: _Run,
    path: Path,
    text: Path | None,
    contexts: Sequence[int],
    policies: Sequence[str],
    tile: int,
    rounds: int,
    repeats: int,
    steps: int,
) -> None:
    tokenizer, model = run.reader.tokenizer, run.reader.model
    ids = {tokens: kv_speed.ids_of(tokenizer, text, tokens) for tokens in contexts}
    hashed = digest(",".join(map(str, ids[max(contexts)])))[:16]
    made = run.made_with(text="python reference" if text is None else text.name, steps=steps, decoding="plain loop")
    rows = Rows(
        path,
        SPEED,
        lambda row: {**_with_options(made, row["method"]), "ids_sha256": row["made_with"].get("ids_sha256")},
    )
    made |= {"ids_sha256": hashed}

    def add(key: Row, found: Mapping[str, Any]) -> None:
        rows.add({**key, **found, **here_and_now(), "made_with": _with_options(made, key["method"])})

    for tokens in contexts:
        for number in range(rounds):
            for policy in kv_speed.distinct(policies):
                key = {"measure": "read", "context": tokens, "tile": 0, "method": policy, "round": number}
                if key not in rows and (number == 0 or policy in (kv_speed.STOCK, "full")):
                    found = kv_speed.child(policy, run.model, run.dtype, text, tokens)
                    add(key, {"slots": kv_speed.slots(policy, tokens), **found})
                    _note(f"{policy} read {tokens:,} tokens, round {number + 1}")
    for tokens, tiled in [*((tokens, 0) for tokens in contexts), *([(contexts[-1], tile)] if tile else [])]:
        keys = {
            policy: {"measure": "decode", "context": tokens, "tile": tiled, "method": policy, "round": 0}
            for policy in policies
            if not tiled or not kv_speed.grows(policy)
        }
        if any(key not in rows for key in keys.values()):  # all of them again: ratios are of one run
            turns = f"{time.time_ns():x}"  # rows of other turns are not held against these
            for found in kv_speed.decoding(model, ids[tokens], tiled, policies, repeats, steps, _note):
                add(keys[found["method"]], {**found, "turns": turns})


def _quality(
    run: _Run, path: Path, bench: kv_quality.Bench, drawn: Iterator[kv_sources.Source], with_what: dict[str, Any]
) -> None:
    made = run.made_with(**with_what)
    rows = Rows(path, QUALITY, lambda row: _with_options(made, row["policy"]))
    hashes = {row["document"]: row["document_sha256"] for row in rows.rows.values()}
    for source in drawn:
        own = kv_quality.hashed(source)
        if (before := hashes.get(source.document, own)) != own:
            raise ArtifactError(
                f"{path} has rows of another text called {source.document!r} ({before}, and now {own}). Name another "
                "--out; nothing of it was changed."
            )
        missing = {
            policy: left
            for policy in bench.policies
            if (
                left := [
                    question.id
                    for question in source.questions
                    if {"document": source.document, "question": question.id, "policy": policy} not in rows
                ]
            )
        }
        if missing:
            for found in kv_quality.measured(bench, source, missing):
                rows.add({**found, **here_and_now(), "made_with": _with_options(made, found["policy"])})
            _note(f"{source.document}: {len(source.questions)} questions, {len(bench.policies)} policies")


def _with_options(made: Mapping[str, Any], policy: str) -> dict[str, Any]:
    """``made`` with every option of a policy: its defaults may be others one day."""
    return {**made, "options": kv_speed.options(policy)}


def _note(said: str) -> None:
    print(said, file=sys.stderr, flush=True)
