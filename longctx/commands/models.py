"""``longctx doctor`` and ``longctx calibrate``: what a model is and can, and what is found out about it once."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from longctx.commands.screen import Screen, size
from longctx.commands.settings import Settings

if TYPE_CHECKING:
    from longctx.backend.report import Report

_SHOWN = 8  # heads listed for people; --json has all
_ASKING = 60.0  # seconds of asking what follows which token, at most


def doctor(settings: Settings, screen: Screen, trial: bool = False) -> None:
    """Show what the model is made of and what is possible with it. Loads no weights without a ``trial``."""
    found = report(settings, screen, trial)
    if screen.json:
        screen.result(found.as_dict())
        return
    layers = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in found.layers.items())
    taken = f"{found.kv_bytes_per_token:,} bytes a token"
    if found.sliding_window:
        taken += f", {found.sliding_bytes_per_token:,} of them for the last {found.sliding_window:,} only"
    screen.table(
        [
            ("model", f"{found.name} ({found.architecture})"),
            ("weights", f"{found.parameters:,} parameters, {size(found.weight_bytes)} as {found.dtype}"),
            ("arithmetic", f"segments are read in {found.reading_dtype}"),
            ("layers", f"{layers}; {found.heads} heads, {found.kv_heads} for keys and values, {found.head_dim} wide"),
            ("window", f"{found.window:,} tokens; keys and values take {taken}"),
            ("cache", "; ".join(f"{_ranges(numbers)} {words}" for words, numbers in found.cache_layers.items())),
            ("template", f"{found.template}, {found.frame_tokens} tokens around text and question"),
            ("device", f"{found.device}, {found.threads} threads"),
            *((ability, f"no: {why}" if why else "yes") for ability, why in found.abilities.items()),
        ]
    )
    if not found.tried:
        screen.note("Told by the configuration. --try loads the weights and tries what only passes of the model tell.")


def _ranges(numbers: Sequence[int]) -> str:
    """``[0, 1, 2, 5]`` as ``0-2, 5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def calibrate(settings: Settings, screen: Screen, seed: int) -> None:
    """Measure every head of the model on planted facts, ask it what follows which token, and keep both for later."""
    from longctx.backend.capability import capability
    from longctx.backend.model import from_pretrained
    from longctx.backend.successors import successors
    from longctx.backend.tokens import Tokens
    from longctx.calibration import calibrate as measure
    from longctx.resources import Calibrator, Probes

    loaded = from_pretrained(settings.model, settings.dtype, settings.device, screen.progress)
    kept = Calibrator(loaded)
    started = time.perf_counter()
    probe = Probes(loaded, Tokens(loaded.tokenizer), kept)()
    found = measure(probe, kept.fingerprint, seed, screen.progress)
    found.save(kept.path)
    warnings: list[str] = []
    drafts = capability(loaded.model).rows == "tree"
    known = 0
    if drafts:
        known = len(successors(loaded.model, warnings.append, screen.progress, _ASKING, math.inf).tokens)
    screen.warn(warnings)
    seconds = time.perf_counter() - started
    if screen.json:
        facts = {"path": str(kept.path), "tokens_asked": known, "seconds": round(seconds, 3)}
        screen.result(dataclasses.asdict(found) | facts)
        return
    best = ", ".join(
        f"{layer}.{head} ({hits:.0%})" for (layer, head), hits in zip(found.heads[:_SHOWN], found.hits, strict=False)
    )
    screen.table(
        [
            ("heads", f"{best}, … {len(found.heads)} in all (layer.head, how often it found the fact)"),
            ("together", f"{found.fused_hits:.0%} of {found.trials} facts"),
            ("kept in", str(kept.path)),
            ("drafts", f"what follows is known of {known:,} tokens" if drafts else "this model verifies no trees"),
        ]
    )
    screen.note(f"{seconds:.1f} s")


def report(settings: Settings, screen: Screen, trial: bool = False) -> Report:
    """The facts of the model that ``settings`` name; with a ``trial``, as its passes show them."""
    from longctx.backend.report import report as make
    from longctx.resources import Encoders

    why = Encoders(settings.reader_options()["encoder"]).why_unavailable
    return make(settings.model, settings.dtype, settings.device, screen.progress, why, trial)
