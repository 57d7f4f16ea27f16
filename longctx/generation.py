"""Lossless speculation around a Hugging Face model: ``generate`` on its own, ``speculative`` inside HF's generate.

Owns the wiring of model, drafters, rule and controller. Knows no method by name besides the default stack.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, Literal
from warnings import warn

import numpy as np
import torch
from numpy.typing import NDArray

from longctx import plugins, values
from longctx.backend.borrowed import handed_back
from longctx.backend.capability import alone_because, open_target
from longctx.backend.folding import folds
from longctx.backend.inputs import check_ids, rows_and_mask
from longctx.backend.outputs import begun, lossless, of_length, refuse, refuse_options, result, rows_of
from longctx.backend.processors import of_row
from longctx.backend.rope import frequencies
from longctx.backend.stopping import ends, limit, stop_strings, strings
from longctx.backend.successors import known_successors, successors
from longctx.backend.target import score_together
from longctx.copied import Source, copies_of
from longctx.decoding.acceptance import Greedy, Residual, Rule, SharedNoise
from longctx.decoding.batch import Batch, in_order
from longctx.decoding.control import Controller
from longctx.decoding.guard import Guard
from longctx.decoding.laws import Processor, Temperature
from longctx.decoding.loop import PIECE, Decoding, Ends
from longctx.decoding.noise import row_seed
from longctx.drafts import DraftSource, Successors
from longctx.errors import BadOption
from longctx.generated import Generation, Stats
from longctx.pace import costs_of, refuted_of, worth_timing
from longctx.promises import guarantee
from longctx.protocols import Drafter, Drafting, Progress
from longctx.stacks import Drafters, Stack, resolve
from longctx.suffixes import SuffixIndex

Acceptance = Literal["shared-noise", "residual"]
_RULES: dict[Acceptance, Callable[[int], Rule]] = {"shared-noise": SharedNoise, "residual": Residual}

CONTROLLER = "goodput"
_WORD = (1 << 63) - 1  # bits of a seed
_AHEAD = 4096  # slots made for new tokens before there are any; a longer answer makes more when it comes to that


def generate(
    model: Any,
    tokenizer: Any,
    input_ids: Any,
    drafters: Drafters = "auto",
    document: Source = None,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int | None = None,
    stop: Sequence[str] = (),
    acceptance: Acceptance = "shared-noise",
    controller: str | Controller = CONTROLLER,
    **options: Any,
) -> Generation:
    """What ``model.generate`` says to ``input_ids`` [tokens] or [batch, tokens], in fewer passes of the model.

    What a tokenizer returns is taken as it is, ids and mask. ``drafters`` are names, Drafter objects, or candidate
    generators of Hugging Face, of which each request asks a copy; ``"none"`` or ``[]`` drafts nothing. Answers may copy
    from ``document``, one or several, compiled or not, besides the prompt. Temperature 0 takes the likeliest token;
    above it the same ``seed`` draws the same tokens with drafting on and off. With ``acceptance="residual"`` the law is
    the same and the tokens are not; it takes a drafter that draws, alone, under ``controller="fixed"``. The token that
    completes one of ``stop`` is the last. ``controller`` decides how much is drafted. Other ``options`` are generate's.

    One pass verifies the rows of all prompts of a batch, each of which gets what it would get alone; where the model's
    layers forbid that, one prompt follows the other, and a warning says so. Prompt i draws as one alone would with
    ``decoding.noise.row_seed(seed, i)``, and has copies of logits processors and stopping criteria. Rounds and copies
    are told of one prompt. Raises BadOption for what drafting forbids, as beams, and DraftError where a drafter fails.
    """
    stop, temperature = strings(model, values.texts("stop", stop)), values.amount("temperature", temperature)
    max_new_tokens = values.whole("max_new_tokens", max_new_tokens, 1)
    refuse_options(tokenizer, options)
    prompts, mask = rows_and_mask(input_ids, options.pop("attention_mask", None))
    check_ids(prompts, model)
    prompts = prompts.to(model.device)
    if mask is not None:
        options["attention_mask"] = mask.to(model.device)
    made: list[tuple[Stats, tuple[str, ...]]] = []
    cache = options.get("past_key_values")
    before = begun(cache)
    decode = speculative(
        drafters,
        document,
        seed=seed,
        tokenizer=tokenizer,
        acceptance=acceptance,
        controller=controller,
        streamer=options.get("streamer"),  # it gets the prompt from generate, as ever
        on_end=lambda stats, warnings: made.append((stats, warnings)),
    )
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    answer = model.generate(
        prompts,
        custom_generate=decode,
        stopping_criteria=stop_strings(tokenizer, stop),
        stop_strings=None,  # the model's own are among the criteria
        max_new_tokens=max_new_tokens,
        **sampling,
        **options,
    )
    sequences = getattr(answer, "sequences", answer)
    ((stats, warnings),) = made
    said = zip(sequences[:, prompts.shape[1] :], stats.lengths, strict=True)
    texts = tuple(_text(tokenizer, row[:length], stop) for row, length in said)
    shortest = prompts.shape[1] if mask is None else int(mask.sum(-1).min())
    promise = guarantee(model, temperature, before or shortest, sequences.shape[1], lossless(cache))
    return Generation(sequences, texts, replace(stats, guarantee=promise), warnings)


def speculative(
    drafters: Drafters = "auto",
    document: Source = None,
    *,
    seed: int | None = None,
    tokenizer: Any = None,
    acceptance: Acceptance = "shared-noise",
    controller: str | Controller = CONTROLLER,
    streamer: Any = None,
    on_end: Callable[[Stats, tuple[str, ...]], None] | None = None,
) -> Callable[..., Any]:
    """A function for ``model.generate(custom_generate=...)`` that decodes with drafts and changes nothing else.

    Batches are decoded as ``generate`` decodes them. ``tokenizer`` is needed where ``document`` is not compiled, and
    lets copies begin at words of another case. ``streamer`` gets committed tokens, one answer after another: give it
    here as well, as ``generate`` hands its own to no other function. ``on_end`` gets the counts and warnings when the
    generation is done; without it they are Python's warnings. Without a ``seed`` every generation draws other tokens.
    """
    seed = seed if seed is None else values.whole("seed", seed)
    if acceptance not in _RULES:
        raise BadOption(f"acceptance={acceptance!r} is not one of {', '.join(_RULES)}.")
    deciding = plugins.resolve("controllers", controller)
    stack = resolve(drafters)
    source = copies_of(document, tokenizer)
    folded = folds(tokenizer) if stack and tokenizer is not None else None

    def decode(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any = (),
        stopping_criteria: Any = (),
        generation_config: Any = None,
        **kwargs: Any,
    ) -> Any:
        number = secrets.randbits(63) if seed is None else seed
        requests: list[Decoding] = []
        told: list[list[str]] = []
        turn, cache = iter((True,)), None
        try:
            refuse(model.config, generation_config, kwargs)
            prompts, cache = rows_of(input_ids, kwargs, generation_config)
            before = begun(cache)
            # of a limit that the prompt has reached generate hears when it has said a token
            most = max(1, limit(stopping_criteria, generation_config.max_length) - input_ids.shape[1])
            for index, (row, prompt) in enumerate(zip(input_ids.tolist(), prompts, strict=True)):
                own = row_seed(number, index)
                decoding, own_warnings = begin(
                    model,
                    prompt,
                    stack,
                    _RULES[acceptance](own) if generation_config.do_sample else Greedy(),
                    controller=deciding,
                    max_new_tokens=most,
                    copied=None if source is None else source.index,
                    ends=ends(stopping_criteria, input_ids, index),
                    processors=of_row(logits_processor, index, len(prompts), input_ids.device),
                    shown=row,
                    cache=cache,
                    seed=own,
                    folded=folded,
                    alone=len(prompts) == 1,
                    asking=lambda: next(turn, False),
                )
                requests.append(decoding)
                told.append(own_warnings)
            apart = alone_because(model) if len(requests) > 1 else ""
            if apart:
                told.append([f"the prompts of the batch are decoded one after another: {apart}."])
            batch = Batch(requests, None if apart else partial(score_together, model))
            for token in in_order(batch):
                if streamer is not None:
                    streamer.put(torch.tensor([token]))
        finally:
            handed_back(cache)
            if streamer is not None:
                streamer.end()  # also after an error: somebody may be waiting for it
        said = max(len(prompt) + len(request.new) for prompt, request in zip(prompts, requests, strict=True))
        told.append(of_length(model, cache, before, said))
        said_once = tuple(dict.fromkeys(chain.from_iterable(told)))
        sequences = result(input_ids, [request.new for request in requests], generation_config, cache)
        if on_end is not None:
            on_end(batch.stats if source is None else source.located(batch.stats), said_once)
        for warning in said_once if on_end is None else ():
            warn(warning, stacklevel=2)
        return sequences

    return decode


def begin(
    model: Any,
    prompt: Sequence[int],
    stack: Stack,
    rule: Rule,
    *,
    max_new_tokens: int,
    controller: str | Controller = CONTROLLER,
    copied: SuffixIndex | None = None,
    ends: Ends = lambda new: False,
    processors: Sequence[Processor] = (),
    shown: Sequence[int] | None = None,
    cache: Any = None,
    seed: int = 0,
    folded: NDArray[np.int32] | None = None,
    weights: NDArray[np.float32] | None = None,
    alone: bool = True,
    asking: Callable[[], bool] = lambda: True,
    progress: Progress | None = None,
) -> tuple[Decoding, list[str]]:
    """A request ready to run, and what is done otherwise than was asked; more of that may be told while it runs.

    ``copied`` is the document to draft from, ``seed`` that of drafters that draw, ``shown`` the prompt as processors
    see it, with its padding; ``folded`` and ``weights`` are what drafters may know of ids and places. A request
    ``alone`` has passes for itself: it begins with what passes of the model were found to take, and adds to that. When
    its answer is long it spends time on what follows which token if it is ``asking``: of a batch one does it for all.
    """
    started = time.perf_counter()
    target, reason = open_target(model, len(prompt) + min(max_new_tokens, _AHEAD), cache)
    warnings: list[str] = []
    if stack and target.rows == "off":
        warnings.append(f"decoded one token at a time, without drafts: {reason}.")
    elif stack and target.rows == "chain" and reason:
        warnings.append(f"drafts are verified as chains, not as trees: {reason}.")
    rotation = frequencies(model.config)
    tokens = np.asarray(prompt, dtype=np.int32)
    index, document = (SuffixIndex(tokens), None) if copied is None else (copied, copied.tokens)
    asks = target.rows == "tree" and max_new_tokens > 1
    asked = partial(_successors, model, warnings.append, progress, asking) if asks else None
    source = DraftSource(tokens, target.vocabulary, document, index, seed & _WORD, folded, weights, asked, target.watch)
    at_work = [(name, _at_work(name, drafter, source)) for name, drafter in stack] if target.rows != "off" else []
    decoding = Decoding(
        target,
        prompt,
        rule,
        at_work,
        plugins.resolve("controllers", controller).begin(
            costs_of(model, target) if alone else None, refuted_of(model, [name for name, _ in stack])
        ),
        max_new_tokens=max_new_tokens,
        needs=max((drafter.needs for _, drafter in stack), default=0),
        ends=ends,
        processors=processors,
        shown=shown,
        piece=rotation.piece(len(prompt), PIECE) if target.goes_on else len(prompt),
        reach=rotation.reach,
        timing=alone and worth_timing(max_new_tokens),
        setup=time.perf_counter() - started,
        progress=progress,
    )
    return decoding, warnings


def _successors(
    model: Any, warn: Callable[[str], None], progress: Progress | None, asking: Callable[[], bool], further: bool
) -> Successors:
    return successors(model, warn, progress) if further and asking() else known_successors(model)


def _at_work(name: str, drafter: Drafter, source: DraftSource) -> Drafting:
    with Guard(name):
        return drafter.begin(source)


def drawing(temperature: float, seed: int | None) -> tuple[Rule, tuple[Processor, ...]]:
    """The rule and the processors that draw from the model's own law at ``temperature``; 0 takes the likeliest."""
    if temperature == 0:
        return Greedy(), ()
    return SharedNoise(secrets.randbits(63) if seed is None else seed), (Temperature(temperature),)


def _text(tokenizer: Any, new: torch.Tensor, stop: Sequence[str]) -> str:
    text = str(tokenizer.decode(new.tolist(), skip_special_tokens=True))
    cuts = [at for at in (text.find(ending) for ending in stop) if at >= 0]
    return text[: min(cuts)] if cuts else text
