"""What a caller gives as a prompt: ids as a tensor, an array or lists, or all that a tokenizer returned.

Owns the one reading of them. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from longctx.errors import BadOption, EmptyInput


def rows_and_mask(input_ids: Any, attention_mask: Any = None) -> tuple[Tensor, Tensor | None]:
    """The ids [rows, tokens] of ``input_ids`` [tokens] or [rows, tokens], and their mask where one is given.

    What a tokenizer returns, a mapping, brings its own mask. Raises EmptyInput for no ids, and BadOption for what are
    none, for two masks, and for a mask of other tokens.
    """
    if isinstance(input_ids, Mapping):
        if "input_ids" not in input_ids:
            raise BadOption(f"input_ids holds {', '.join(map(str, input_ids)) or 'nothing'}, and no 'input_ids'.")
        own = input_ids.get("attention_mask")
        if own is not None and attention_mask is not None:
            raise BadOption("attention_mask is given twice: with input_ids and by itself. Give input_ids['input_ids'].")
        input_ids, attention_mask = input_ids["input_ids"], attention_mask if own is None else own
    ids = _tensor("input_ids", input_ids)
    if not ids.numel():
        raise EmptyInput("input_ids holds no tokens.")
    if ids.ndim not in (1, 2) or ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        raise BadOption(
            f"input_ids of shape {tuple(ids.shape)} and {ids.dtype} must be whole numbers, [tokens] or [rows, tokens]."
        )
    ids = ids[None] if ids.ndim == 1 else ids
    if attention_mask is None:
        return ids, None
    mask = _tensor("attention_mask", attention_mask)
    if mask.numel() != ids.numel():
        raise BadOption(f"attention_mask of shape {tuple(mask.shape)} is not that of {ids.numel()} tokens.")
    return ids, mask.reshape(ids.shape)


def check_ids(ids: Tensor, model: Any) -> None:
    """Raises BadOption for ids that ``model`` has no embeddings for."""
    known = int(model.get_input_embeddings().weight.shape[0])
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= known:
        raise BadOption(
            f"input_ids go from {least} to {most}, and the model has embeddings for 0 to {known - 1}: they come from "
            "another tokenizer."
        )


def _tensor(name: str, given: Any) -> Tensor:
    if isinstance(given, str):
        raise BadOption(f"{name} is a text. tokenizer(text, return_tensors='pt') makes tokens of it.")
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(given).__name__
        raise BadOption(f"{name} of type {kind} must be numbers, in rows of one length: {error}.") from error
