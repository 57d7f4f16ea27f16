"""What a grid of needles will take: tokens, memory at the peak and time, told before anything is loaded.

Owns the sum over rows. Memory is that of ``longctx plan``; time is counted work over the speed of two matrix products
made now, and is an estimate.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longctx import plugins
from longctx.commands import sums
from longctx.commands.plan import plan
from longctx.commands.process import free_bytes
from longctx.commands.screen import Screen, size
from longctx.commands.settings import Settings
from longctx.contexts import reach
from longctx.errors import DoesNotFit

if TYPE_CHECKING:
    from longctx.backend.report import Report

_SHARE = 0.5  # of the matrix products' speed that a whole model reaches: norms, attention and small kernels take time
_ENCODER_PARAMETERS = 10_600_000  # in the layers of the embedded sentence encoder, which computes in the faster format
_EVERYTHING = "all"  # the selector that keeps the whole text
_SIDE, _ROWS, _ROUNDS, _LEAST_SECONDS = 2048, 512, 5, 1e-6


@dataclass(frozen=True, slots=True)
class Speed:
    """What this machine does in a second: operations of large matrix products, bytes of weights for one row.

    ``stock`` operations are in the format of the weights, which the model's own forward keeps to.
    """

    operations: float
    stock: float
    weight_bytes: float


@dataclass(frozen=True, slots=True)
class Work:
    """One length of the grid. ``refused`` are the systems whose window is too short for it; they cost nothing."""

    length: int
    texts: int
    rows: int
    tokens: int
    peak_bytes: int | None
    seconds: float | None
    refused: tuple[str, ...] = ()


def forecast(
    model: Report | None,
    lengths: Sequence[tuple[int, int, int]],
    selectors: Mapping[str, Settings],
    plain: Sequence[str],
    servers: int,
    settings: Settings,
    measure: Callable[[], Speed],
) -> list[Work]:
    """The work of each (length, texts, questions). Without a model on this machine's processor no time is known.

    ``selectors`` are systems by name, each with settings of its own; ``settings`` are those of the ``plain`` ones. The
    time of servers is never known. Raises BadOption for a KV policy that cannot bound a prompt.
    """
    found = []
    speed = measure() if model is not None and model.device == "cpu" else Speed(math.inf, math.inf, math.inf)
    plainly = dataclasses.replace(speed, operations=speed.stock)
    for length, texts, questions in lengths:
        rows = questions * (len(selectors) + len(plain) + servers)
        work = Work(length, texts, rows, texts * length, None, None)
        if model is None:
            found.append(work)
            continue
        peaks: list[int] = []
        kept, seconds, refused = 0, 0.0, []
        for name, own in selectors.items():
            fixed = model.frame_tokens + sums.QUESTION + own.max_new_tokens
            if own.selector == _EVERYTHING and reach(own.policy(), length)[0] + fixed > model.window:
                refused.append(name)
                continue
            peaks.append(plan(model, length, own).peak)
            kept = max(kept, _cached(model, own, length))
            seconds += _selecting(model, own, length, texts, questions, speed)
        for name in plain:
            room = model.window - settings.max_new_tokens
            if name == "full" and length > room:
                refused.append(name)
                continue
            read = min(length, room)
            whole = plan(model, read, dataclasses.replace(settings, selector=_EVERYTHING, kv="none"))
            peaks.append(
                whole.peak + sums.activations(model, read) - sums.activations(model, sums.at_once(model, read))
            )
            seconds += questions * (_attended(model, read, read, plainly) + _said(model, read, settings, plainly))
        peak = max(peaks, default=0) + (kept if len(peaks) > 1 else 0)  # the last bounded cache outlives its answer
        found.append(dataclasses.replace(work, peak_bytes=peak, seconds=seconds or None, refused=tuple(refused)))
    return found


def show(works: Sequence[Work], screen: Screen, say: Callable[[str], None]) -> None:
    """One line for each length. Raises DoesNotFit, after all lines, when one needs more memory than is free."""
    free = free_bytes()
    for work in works:
        peak = "" if work.peak_bytes is None else f"  {size(work.peak_bytes):>8} at the peak"
        took = "" if work.seconds is None else f"  about {duration(work.seconds)}"
        beyond = f"  beyond the window: {', '.join(work.refused)}" if work.refused else ""
        say(f"{work.length:>9,} tokens: {work.texts} texts, {work.rows} rows{peak}{took}{beyond}")
    total = sum(work.seconds or 0.0 for work in works)
    if total:
        say(f"in all {sum(work.tokens for work in works):,} tokens of text, about {duration(total)} on this machine")
    over = [work for work in works if free is not None and (work.peak_bytes or 0) > free]
    if over:
        needs = ", ".join(f"{work.length:,} tokens need {size(work.peak_bytes or 0)}" for work in over)
        raise DoesNotFit(f"{needs}, and {size(free or 0)} are free. Leave these lengths out, or free some memory.")


def speed_of(dtype: str, reading: str) -> Speed:
    """Matrix products in the format ``reading`` and in that of the weights, in processor time.

    Other work does not lengthen that.
    """
    import torch

    def best(rows: int, kind: str) -> float:
        inputs, weight = (torch.randn(size, _SIDE).to(getattr(torch, kind)) for size in (rows, _SIDE))
        took = []
        for _ in range(_ROUNDS):
            started = time.process_time()
            torch.nn.functional.linear(inputs, weight)
            took.append((time.process_time() - started) / torch.get_num_threads())
        return max(min(took), _LEAST_SECONDS)

    fast, stock = (2.0 * _ROWS * _SIDE**2 / best(_ROWS, kind) for kind in (reading, dtype))
    return Speed(fast, stock, _SIDE**2 * getattr(torch, dtype).itemsize / best(1, dtype))


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _selecting(model: Report, settings: Settings, length: int, texts: int, questions: int, speed: Speed) -> float:
    """Seconds of compiling, choosing and answering."""
    if length <= settings.usual_budget or settings.selector == _EVERYTHING:
        # through a bounded cache a text is read once for all questions about it
        reading = _whole(model, settings, length, speed) * (questions if settings.policy() is None else texts)
        return reading + questions * _spoken(model, settings, speed)
    if length * model.kv_bytes_per_token <= sums.segment_memory(settings):
        read = texts * length  # a text that the memory holds is read when it is compiled
    else:
        read = questions * sums.tokens_read(settings, length, settings.usual_budget)
    seconds = _read(model, read, speed) + questions * _said(model, settings.usual_budget, settings, speed)
    if sums.encodes(model, settings):
        seconds += 2.0 * _ENCODER_PARAMETERS * texts * length / (_SHARE * speed.operations)
    return seconds


def _cached(model: Report, settings: Settings, length: int) -> int:
    """Bytes of the bounded cache that stays until the next one is made; 0 without a policy."""
    policy = settings.policy()
    tokens = length if settings.selector == _EVERYTHING else min(length, settings.usual_budget)
    return 0 if policy is None else sums.held(model, tokens, policy)


def _whole(model: Report, settings: Settings, length: int, speed: Speed) -> float:
    """Seconds of reading all of a text; a policy that bounds that has the model's own forward do it."""
    method = plugins.load("kv", settings.policy() or "full")
    most = length
    if method.grows:
        speed, most = dataclasses.replace(speed, operations=speed.stock), min(length, method.slots(length))
    return _read(model, length, speed) + _attended(model, length, most, speed)


def _attended(model: Report, tokens: int, most: int, speed: Speed) -> float:
    """Seconds of attention while ``tokens`` are read, each of which attends to at most ``most`` before it."""
    pairs = tokens * most - most**2 / 2
    return 4.0 * sum(model.layers.values()) * model.heads * model.head_dim * pairs / (_SHARE * speed.operations)


def _said(model: Report, prompt: int, settings: Settings, speed: Speed) -> float:
    """Seconds of one answer of full length to a prompt that is read for it."""
    return _read(model, prompt, speed) + _spoken(model, settings, speed)


def _spoken(model: Report, settings: Settings, speed: Speed) -> float:
    return settings.max_new_tokens * model.weight_bytes / (_SHARE * speed.weight_bytes)


def _read(model: Report, tokens: int, speed: Speed) -> float:
    return 2.0 * model.layer_parameters * tokens / (_SHARE * speed.operations)
