"""Lossless speculation around a Hugging Face model: ``generate`` on its own, ``speculative`` inside HF's generate.

Owns the wiring of model, drafters, rule and controller. Knows no method by name besides the default stack.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longctx import plugins
from longctx.backend.stopping import ends, stop_strings
from longctx.backend.target import RowTarget
from longctx.backend.tokens import Tokens
from longctx.compiled import CompiledDocument
from longctx.decoding.acceptance import Greedy, Rule, SharedNoise
from longctx.decoding.controller import Fixed
from longctx.decoding.loop import Decoding
from longctx.drafts import DraftSource, Generation, Stats
from longctx.errors import BadOption, EmptyInput
from longctx.protocols import Drafter
from longctx.types import Document, Guarantee

Drafters = str | Sequence[str | Drafter]
Source = Document | CompiledDocument | None

AUTO: tuple[str, ...] = ("document",)
_ROWS = 64  # rows of the largest draft


def generate(
    model: Any,
    tokenizer: Any,
    input_ids: Any,
    *,
    drafters: Drafters = "auto",
    document: Source = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int | None = None,
    stop: Sequence[str] = (),
    **options: Any,
) -> Generation:
    """What ``model.generate`` would say to ``input_ids`` [tokens] or [batch, tokens], in fewer passes of the model.

    ``document`` is what the answer may copy from (None: the prompt). Temperature 0 takes the likeliest token; above it
    the same ``seed`` draws the same tokens with drafting on and off. Generation ends with the token that completes one
    of ``stop``. ``options`` go to ``model.generate``.
    """
    prompts = torch.as_tensor(input_ids, device=model.device)
    prompts = prompts[None] if prompts.ndim == 1 else prompts
    kept: list[Stats] = []
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    sequences = model.generate(
        prompts,
        custom_generate=speculative(drafters, document, seed=seed, tokenizer=tokenizer, on_stats=kept.append),
        stopping_criteria=stop_strings(tokenizer, stop),
        max_new_tokens=max_new_tokens,
        **sampling,
        **options,
    )
    texts = tuple(_text(tokenizer, row, stop) for row in sequences[:, prompts.shape[1] :])
    return Generation(sequences, texts, kept[0], _guarantee(model, temperature))


def speculative(
    drafters: Drafters = "auto",
    document: Source = None,
    *,
    seed: int | None = None,
    tokenizer: Any = None,
    on_stats: Callable[[Stats], None] | None = None,
) -> Callable[..., Any]:
    """A function for ``model.generate(custom_generate=...)`` that decodes with drafts and changes nothing else.

    ``tokenizer`` is needed where ``document`` is not compiled yet. ``on_stats`` is called when the generation is done.
    """
    chosen = resolve(drafters)
    copied = _tokens(document, tokenizer)
    number = secrets.randbits(63) if seed is None else seed

    def decode(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any = (),
        stopping_criteria: Any = (),
        generation_config: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        rule: Rule = SharedNoise(number) if generation_config.do_sample else Greedy()
        prompt = input_ids[0].tolist()
        limit = generation_config.max_length - len(prompt)
        target = RowTarget(model, len(prompt) + limit + _ROWS)
        source = DraftSource(np.asarray(prompt, dtype=np.int32), target.vocabulary, copied)
        decoding = Decoding(
            target,
            prompt,
            rule,
            [(name, drafter.begin(source)) for name, drafter in chosen],
            Fixed(),
            max_new_tokens=limit,
            ends=ends(stopping_criteria, prompt),
            processors=tuple(logits_processor),
        )
        for _ in decoding.run():
            pass
        if on_stats is not None:
            on_stats(decoding.stats)
        return torch.tensor([decoding.committed], device=input_ids.device)

    return decode


def resolve(drafters: Drafters) -> list[tuple[str, Drafter]]:
    """Names and objects of the drafters asked for; ``auto`` is the default stack."""
    if isinstance(drafters, str):
        drafters = AUTO if drafters == "auto" else (drafters,)
    found = [(_name(drafter), plugins.resolve("drafters", drafter)) for drafter in drafters]
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise BadOption(f"a drafter is named twice: {', '.join(names)}.")
    return found


def _name(drafter: str | Drafter) -> str:
    return drafter.partition(":")[0] if isinstance(drafter, str) else type(drafter).__name__.lower()


def _tokens(document: Source, tokenizer: Any) -> NDArray[np.int32] | None:
    if document is None:
        return None
    if isinstance(document, CompiledDocument):
        return np.concatenate([encoded.token_ids for encoded in document.encoded])
    if tokenizer is None:
        raise BadOption("a document that is not compiled needs tokenizer= to become tokens.")
    if not document.text:
        raise EmptyInput(f"document {document.id!r} is empty.")
    return Tokens(tokenizer).encode(document).token_ids


def _text(tokenizer: Any, new: torch.Tensor, stop: Sequence[str]) -> str:
    text = str(tokenizer.decode(new.tolist(), skip_special_tokens=True))
    cuts = [at for at in (text.find(ending) for ending in stop) if at >= 0]
    return text[: min(cuts)] if cuts else text


def _guarantee(model: Any, temperature: float) -> Guarantee:
    wide = model.dtype in (torch.float32, torch.float64)
    return "exact" if wide and temperature == 0 else "exact-up-to-float"
