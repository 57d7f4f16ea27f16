"""What Hugging Face's generate hands to a decoding function of one's own, and what it expects back.

Owns what of it is refused, what a cache of the caller's means for prompt and answer, padding, and the shape of the
result. Knows no draft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GenerateDecoderOnlyOutput

from longctx.backend.borrowed import held, untouched
from longctx.backend.bounded import BoundedCache
from longctx.backend.model import past_window
from longctx.backend.rope import turned
from longctx.errors import BadOption, CacheError, EmptyInput

_KNOWN = {
    "attention_mask", "position_ids", "past_key_values", "cache_params", "use_cache", "logits_to_keep"
}  # fmt: skip
_SEEN = "mm_encoder_outputs"
_INSTEAD = {
    "assistant_model": "drafts come from drafters=",
    "custom_generate": "it is what generate is made with; give longctx.speculative() to model.generate",
    "do_sample": "a temperature= above 0 draws",
    "stop_strings": "stop= takes them",
    "stopping_criteria": "stop= takes strings; model.generate(custom_generate=longctx.speculative()) takes criteria",
}
_ARGUMENTS = ("max_new_tokens", "max_length", "do_sample", "temperature", "stop_strings")
_REFUSED = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def refuse(model: Any, config: GenerationConfig, given: Mapping[str, Any]) -> None:
    """Raises BadOption for what a loop of drafts cannot give: ``model`` is its configuration, ``given`` its inputs."""
    if model.is_encoder_decoder:
        raise BadOption(f"a {model.model_type} model answers through a second stack; only decoders can be drafted for.")
    if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1:
        raise BadOption(
            f"num_beams={config.num_beams} and num_return_sequences={config.num_return_sequences} must be 1: drafts "
            "speed up one sequence a prompt."
        )
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise BadOption(f"these options ask for {mode.value}, which cannot be had together with drafts.")
    # of a model that could see, generate says that there is nothing to be seen
    nothing = [name for name, value in given.items() if value is None or (name == _SEEN and not value)]
    unknown = [name for name in given if name not in {*nothing, *_KNOWN}]
    if unknown:
        raise BadOption(f"{', '.join(unknown)} cannot be had together with drafts: only ids and their mask are read.")
    asked = [name for name in _REFUSED if getattr(config, name, None) and config.return_dict_in_generate]
    if asked:
        raise BadOption(f"{', '.join(asked)} cannot be had together with drafts; call generate without them.")


def refuse_options(tokenizer: Any, given: Mapping[str, Any]) -> None:
    """Raises BadOption for no tokenizer, and for options of ``model.generate`` that have another name here, or none."""
    if not callable(getattr(tokenizer, "decode", None)):
        raise BadOption(f"tokenizer={tokenizer!r:.80} must be a tokenizer, which makes text of the new tokens.")
    for name, instead in _INSTEAD.items():
        if given.get(name) is not None:
            raise BadOption(f"{name}= cannot be had: {instead}.")
    config = given.get("generation_config")
    if found := [name for name in _ARGUMENTS if getattr(config, name, None)]:
        raise BadOption(
            f"generation_config= sets {', '.join(found)}, which max_new_tokens=, temperature= and stop= say here. "
            "Leave them out of it."
        )


def lossless(cache: Any) -> bool:
    """Whether all that ``cache`` holds is read."""
    return type(cache) is not BoundedCache or cache.context.policy.lossless


def begun(cache: Any) -> int:
    """Tokens of a caller's ``cache`` that were read as a text by themselves; 0 where nobody reads what it holds."""
    if not isinstance(cache, Cache) or all(cache.is_linear) or untouched(cache):  # a state does not say of how many
        return 0
    return cache.tokens if type(cache) is BoundedCache else held(cache)


def of_length(model: PreTrainedModel, cache: Any, before: int, last: int) -> list[str]:
    """What is to be said of an answer up to ``last`` tokens, the first ``before`` of them a text in a ``cache``."""
    # a bounded cache sees nothing from so far away, and says itself what it does
    said = list(past_window(model, last)) if lossless(cache) else []
    otherwise = turned(model.config, before, last) if before else ""
    return [*said, otherwise] if otherwise else said


def rows_of(input_ids: Tensor, given: dict[str, Any], config: GenerationConfig) -> tuple[list[list[int]], Any]:
    """The prompts without their padding, and the cache of the caller.

    Raises CacheError where the cache holds tokens that the prompt lacks or a context of other tokens, or more than one
    prompt shares it, EmptyInput for a prompt of padding only, and BadOption for positions of the caller's own.
    """
    tokens = input_ids.shape[1]
    mask = given.get("attention_mask")
    cache = given.get("past_key_values", given.get("cache_params"))
    used = cache is not None and not untouched(cache)
    if used and len(input_ids) > 1:
        raise CacheError(
            f"{len(input_ids)} prompts cannot share a {type(cache).__name__}, as each is decoded behind a cache of its "
            "own: give one prompt, or no cache."
        )
    count = held(cache) if used else 0
    # a mask of ones is in no argument any more, only how long it was: longer than the ids, these are new ones alone
    masked = mask is not None or getattr(config, "_mask_length", tokens) != tokens
    if count and (masked or count >= tokens):
        raise CacheError(
            f"the cache holds {count} tokens: give one prompt of more tokens than that, those in the cache first, no "
            "padding, and a mask as long as the prompt, or none."
        )
    if type(cache) is BoundedCache and cache.thread != get_ident():
        raise CacheError(
            "another thread has attached the context, and makes all passes until it is done. Attach it in the thread "
            "that generates."
        )
    if type(cache) is BoundedCache and input_ids[0, : cache.tokens].tolist() != list(cache.context.ids):
        raise CacheError(
            f"the prompt does not begin with the {cache.tokens} tokens of the context in the cache. Put the question's "
            "ids behind the context's: text and question in one call of the tokenizer may join at the seam."
        )
    if type(cache) is BoundedCache and cache.behind not in (None, input_ids[0, cache.tokens : count].tolist()):
        raise CacheError(
            f"behind its context the cache holds {count - cache.tokens} tokens that the prompt lacks, of another "
            "question. Call rewind() on it first, or ask a fork()."
        )
    kept = torch.ones_like(input_ids).bool() if mask is None else mask.bool()
    places = given.get("position_ids")
    if places is not None and places.shape == input_ids.shape and (places != kept.cumsum(-1) - 1)[kept].any():
        raise BadOption("position_ids= cannot be had together with drafts: tokens are counted from 0, without padding.")
    if empty := (~kept.any(-1)).nonzero().flatten().tolist():
        raise EmptyInput(
            f"of {len(kept)} prompts, number {', '.join(map(str, empty))} (from 0) has no tokens: nothing but padding."
        )
    return [row[own].tolist() for row, own in zip(input_ids, kept, strict=True)], cache


def result(prompts: Tensor, answers: Sequence[Sequence[int]], config: GenerationConfig, cache: Any) -> Any:
    """Prompts with their answers behind them, the shorter ones padded, as ``generate`` returns them.

    A bounded cache knows afterwards what it holds.
    """
    if type(cache) is BoundedCache:
        cache.behind = [*prompts[0].tolist(), *answers[0]][cache.tokens : held(cache)]
    longest = max(map(len, answers))
    # generate's own: a model without such a token pads with one that ends answers
    pad = 0 if config._pad_token_tensor is None else int(config._pad_token_tensor)
    filled = [[*answer, *[pad] * (longest - len(answer))] for answer in answers]
    new = torch.tensor(filled, dtype=prompts.dtype, device=prompts.device).reshape(len(answers), longest)
    sequences: Any = torch.cat((prompts, new), 1)
    if config.return_dict_in_generate:
        own = None if cache is None or untouched(cache) else cache  # nothing was put into what generate made
        return GenerateDecoderOnlyOutput(sequences=sequences, past_key_values=own)
    return sequences
