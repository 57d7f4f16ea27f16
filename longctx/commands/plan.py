"""``longctx plan``: the memory that ``longctx ask`` will take, told before anything is loaded.

Owns the sum. Its terms are the sizes of what the library really holds (tokens, units, index, vectors, segments,
prompt); its constants were measured with ``/usr/bin/time -v``. CPU memory only: the disk is told by ``stored``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from longctx import plugins
from longctx.commands import sums
from longctx.commands.ask import check
from longctx.commands.models import report
from longctx.commands.process import free_bytes
from longctx.commands.screen import Screen, size
from longctx.commands.settings import Settings
from longctx.commands.stored import rows_of, stored
from longctx.errors import DoesNotFit, ModelError, UsageError
from longctx.room import Room

if TYPE_CHECKING:
    from longctx.backend.report import Report

MB = 10**6
_RUNTIME = 405 * MB  # the interpreter, torch, transformers and what they import
_VOCABULARY = 1_250  # bytes a tokenizer holds for one entry
_TOKENISING = 40 * MB  # what a batch of chunks takes in the tokenizer, before it is numbers
_ENCODER = 160 * MB  # sentence-transformers and what it imports, and the embedded encoder
_ENCODING = 300 * MB  # a batch of the encoder at its peak, given back before the model reads
_ENCODED = 20_000  # bytes of that for each token of the text, while the text fills no batch
_UNIT_BYTES = 3_000  # a unit's object, text, words and vector, with what building the index leaves behind
_HEADS = 16  # calibrated heads whose attention is kept for every token that was read
_HOLES = 0.35  # of the segments dropped for others: memory between those kept that cannot be used again at once
_LAW = 2  # bytes of a vocabulary entry that xl3m works on for every segment, beside the readings that are kept


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes by purpose. ``loaded`` is the model by itself; ``above`` what asking adds at its peak.

    ``kv`` is what keys, values and index of the whole text take by policy; ``warnings`` say where the policy asked for
    bounds nothing.
    """

    parts: Mapping[str, int]
    loaded: int
    above: int
    free: int | None
    kv: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        return self.loaded + self.above

    @property
    def fits(self) -> bool:
        return self.free is None or self.peak <= self.free


def show(tokens: int, settings: Settings, screen: Screen) -> None:
    """Show the plan. Raises DoesNotFit when this machine has less free memory than the peak."""
    if tokens < 1:
        raise UsageError(f"--tokens {tokens} must be at least 1.")
    check(settings)
    model = report(settings, screen)
    made = plan(model, tokens, settings)
    why = beyond_window(model, tokens, settings)
    policy = settings.policy()
    if policy is not None and (lacks := _lacks(model, tokens, settings, policy)):
        raise ModelError(lacks)
    kept = stored(model, tokens)
    if screen.json:
        parts = {f"{name.replace(' ', '_')}_bytes": value for name, value in made.parts.items()}
        screen.result(
            {
                "model": model.name,
                "tokens": tokens,
                "selector": settings.selector,
                **parts,
                "loaded_bytes": made.loaded,
                "above_loaded_bytes": made.above,
                "peak_bytes": made.peak,
                "free_bytes": made.free,
                "fits": made.fits and not why,
                "stored": dataclasses.asdict(kept),
                "kv_bytes": made.kv,
                "warnings": list(made.warnings),
            }
        )
    else:
        rows = [(name, f"{size(value):>9}") for name, value in made.parts.items()]
        free = "unknown" if made.free is None else size(made.free)
        rows += [
            ("model loaded", f"{size(made.loaded):>9}"),
            ("asking adds", f"{size(made.above):>9}"),
            ("peak", f"{size(made.peak):>9}  of {free} free: {'fits' if made.fits else 'does not fit'}"),
        ]
        screen.table([*rows, *rows_of(kept, sums.segment_memory(settings))])
        if settings.policy() is not None:
            screen.table([(f"kv {name}", f"{size(held):>9}") for name, held in made.kv.items()])
        full = sums.kept(model, tokens)
        trained = f"and the model was trained to {model.window:,} tokens" if tokens > model.window else ""
        screen.note(f"reading all of it at once would keep {size(full)} of keys and values {trained}".rstrip())
        screen.warn(made.warnings)
    if not made.fits:
        raise DoesNotFit(
            f"{tokens:,} tokens with {model.name} need {size(made.peak)}, and {size(made.free or 0)} are free. "
            f"Free some memory, use a smaller model, or lower segment_memory_bytes in the configuration."
        )
    if why:
        raise DoesNotFit(why)


def beyond_window(model: Report, tokens: int, settings: Settings) -> str:
    """Why ``ask`` would refuse a prompt of this plan for the window, in its words; empty where it would not."""
    from longctx.contexts import reach

    room, whole = _room(model), settings.selector == "all"
    try:
        budget = room.budget(sums.QUESTION, settings.budget, settings.max_new_tokens, whole)
        behind = model.frame_tokens + sums.QUESTION
        reached = reach(settings.policy(), behind + (tokens if whole else min(tokens, budget)), behind)
        if not whole:
            room.check_budget(sums.QUESTION, budget, settings.max_new_tokens, reached[0])
            room.check_segment(sums.QUESTION, min(tokens, sums.segment(settings)))
        else:
            room.check_prompt(reached, settings.max_new_tokens)
    except DoesNotFit as error:
        return str(error)
    return ""


def _lacks(model: Report, tokens: int, settings: Settings, policy: str) -> str:
    """Why ``ask`` would refuse the policy for this model, in its words; empty where it would not."""
    method = plugins.load("kv", policy)
    lacks = model.abilities["reads a bounded cache (kv policies)"]
    if lacks and (method.grows or not settings.kv_partial):
        return lacks
    prompt = _prompt(model, tokens, settings)
    # one that holds all of it reads it as it stands
    moves = method.grows and method.slots(prompt) < prompt
    return model.abilities["moves keys of a text (kv longheads, lm_infinite)"] if moves else ""


def _prompt(model: Report, tokens: int, settings: Settings) -> int:
    """Tokens of the prompt: the frame, a question, and what is read of the text."""
    whole = settings.selector.partition(":")[0] == "all"
    return model.frame_tokens + sums.QUESTION + (tokens if whole else min(tokens, _budget(model, settings)))


def _budget(model: Report, settings: Settings) -> int:
    """Tokens of text that are selected."""
    longest = _room(model).longest(sums.QUESTION, settings.max_new_tokens)
    return min(settings.usual_budget, max(1, longest)) if settings.budget is None else settings.budget


def _room(model: Report) -> Room:
    return Room(model.window, model.frame_tokens)


def plan(model: Report, tokens: int, settings: Settings) -> Plan:
    """The memory for one question about a text of ``tokens`` tokens."""
    room, budget = _room(model), _budget(model, settings)
    whole = settings.selector.partition(":")[0] == "all"
    scored = not whole and tokens > budget
    encodes = scored and sums.encodes(model, settings)
    read = sums.tokens_read(settings, tokens, budget) if scored else 0
    units = tokens // sums.UNIT + 1
    prompt = _prompt(model, tokens, settings)
    said = room.few(budget) if scored and settings.budget is None else ()
    short: str = plugins.load("kv", settings.policy() or "full").shortfall(prompt)
    said += (short,) if short else ()
    parts = {
        "runtime": _RUNTIME + model.vocabulary * _VOCABULARY,
        "weights": model.weight_bytes,
        "text and index": tokens * (sums.TEXT_BYTES + 4 + 8) + units * _UNIT_BYTES + min(_TOKENISING, tokens * 400),
        "encoder": _ENCODER if encodes else 0,
        "encoding scratch": min(_ENCODING, tokens * _ENCODED) if encodes else 0,
        "segment memory": min(sums.segment_memory(settings), read * model.kv_bytes_per_token),
        "reading scratch": _reading(model, settings, read, sums.segment(settings)) if read else 0,
        "prompt": _keys(model, prompt, settings.policy()) + settings.max_new_tokens * model.kv_bytes_per_token,
        "prompt scratch": sums.activations(model, sums.at_once(model, prompt)),
    }
    during = parts["prompt"] + parts["prompt scratch"]
    kept = parts["text and index"] + parts["encoder"]
    loaded = parts["runtime"] + parts["weights"]
    above = kept + max(parts["encoding scratch"], parts["segment memory"] + max(parts["reading scratch"], during))
    return Plan(parts, loaded, above, free_bytes(), _policies(model, tokens, settings.policy()), said)


def _keys(model: Report, tokens: int, policy: str | None) -> int:
    """Bytes of a prompt's keys and values at their peak, with the index of a policy that bounds them."""
    whole = sums.kept(model, tokens)
    if policy is None:
        return whole
    held = sums.held(model, tokens, policy)
    grows: bool = plugins.load("kv", policy).grows
    return held if grows else max(held, whole)  # the others read everything before they choose


def _policies(model: Report, tokens: int, asked: str | None) -> dict[str, int]:
    """What every policy would hold of the text: the one that is asked for as it is asked for, others by default."""
    wanted = {name: name for name in plugins.names("kv")} | ({asked.partition(":")[0]: asked} if asked else {})
    return {name: sums.held(model, tokens, policy) for name, policy in wanted.items()}


def _reading(model: Report, settings: Settings, read: int, segment: int) -> int:
    """What one pass over segments takes, and the numbers kept of each."""
    from longctx.backend.probe import READ_TOKENS
    from longctx.compiled import ASK_AT_ONCE
    from longctx.latest import BYTES

    batch = max(READ_TOKENS, segment) * model.kv_bytes_per_token + sums.activations(model, READ_TOKENS, reading=True)
    if model.reading_dtype != model.dtype:  # the weights of one layer, converted
        batch += 4 * _layer_weights(model)
    asked = ASK_AT_ONCE * sums.QUESTION * model.vocabulary * 10  # logits: as computed, in float32, and as logarithms
    kept = read * _HEADS * 4
    if settings.selector.startswith("xl3m:signal=") and "question_likelihood" not in settings.selector:
        laws = read // segment * model.vocabulary
        kept = laws * _LAW + min(BYTES, 4 * laws)
    dropped = max(0, read * model.kv_bytes_per_token - sums.segment_memory(settings))
    return batch + asked + kept + int(_HOLES * min(dropped, sums.segment_memory(settings)))


def _layer_weights(model: Report) -> int:
    """Numbers in the linear layers of one decoder layer."""
    attention = 2 * (model.heads + model.kv_heads) * model.head_dim * model.hidden
    return attention + 3 * model.hidden * model.intermediate
