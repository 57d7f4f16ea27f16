"""Plain decoding: a prompt's ids in, one new id at a time out.

Owns prefill in pieces, the cache of one answer and the draw. Knows no text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from longctx.backend.attention import alone
from longctx.errors import ModelError
from longctx.protocols import Progress

_PIECE = 1024  # prompt tokens of one prefill pass: bounds memory, and how long stopping takes


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompt: Sequence[int],
    max_new_tokens: int,
    stops: Sequence[int],
    temperature: float = 0.0,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Iterator[int]:
    """New ids until one of ``stops`` (not yielded) or ``max_new_tokens``. Temperature 0 takes the most likely id.

    With a temperature, the same seed draws the same ids on the same machine. Raises ModelError when the model's
    numbers are not finite.
    """
    generator = torch.Generator(device="cpu")
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([list(prompt)], device=model.device)
    logits = None
    for start in range(0, ids.shape[1], _PIECE):
        piece = ids[:, start : start + _PIECE]
        logits = _step(model, piece, start, cache)
        if progress is not None:
            progress("prompt", start + piece.shape[1], ids.shape[1])
    assert logits is not None
    at = ids.shape[1]
    for left in range(max_new_tokens, 0, -1):
        chosen = _choose(logits, temperature, generator, at)
        if chosen in stops:
            return
        yield chosen
        if left > 1:
            logits = _step(model, torch.tensor([[chosen]], device=model.device), at, cache)
            at += 1


def _step(model: PreTrainedModel, ids: Tensor, start: int, cache: DynamicCache) -> Tensor:
    """Logits [vocab] of the last of ``ids``, which stand at positions from ``start`` on."""
    positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
    with alone(model):
        out = model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
    last: Tensor = out.logits[0, -1].float().cpu()
    return last


def _choose(logits: Tensor, temperature: float, generator: torch.Generator, position: int) -> int:
    top = logits.max()  # NaN where any is NaN
    if not torch.isfinite(top):
        raise ModelError(
            f"the model's prediction at position {position} is not finite. Load it in float32 or bfloat16."
        )
    if temperature == 0.0:
        return int(logits.argmax())
    law = ((logits - top) / temperature).softmax(-1)
    return int(torch.multinomial(law, 1, generator=generator))
