"""What a stored document depends on, told apart: the model, its tokenizer, its chat template, the prompt's frame.

Owns the hashes. ``model.fingerprint`` is one hash of the first three; these say which of them differs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longctx.backend.model import SAYS_NOTHING, Loaded
from longctx.backend.tokens import Frame

_OF_THE_LAST_CALL = ("truncation", "padding")  # settings that a tokenizer's file carries and calls change


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """SHA-256 of each, in hexadecimal digits."""

    model: str
    tokenizer: str
    template: str
    frame: str


def fingerprints(loaded: Loaded, frame: Frame) -> Fingerprints:
    """The fingerprints of a model as it is loaded and of the prompt around text and question."""
    template = str(getattr(loaded.tokenizer, "chat_template", "")).encode("utf-8", "surrogatepass")
    fixed = json.dumps([frame.before, frame.middle, frame.after]).encode()
    return Fingerprints(
        _model(loaded.model), _tokenizer(loaded.tokenizer), hashlib.sha256(template).hexdigest(), _hex(fixed)
    )


@torch.inference_mode()
def _model(model: PreTrainedModel) -> str:
    """Configuration, dtype and a sample of every weight, as in ``model.fingerprint``."""
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_") and k not in SAYS_NOTHING}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(str(model.dtype).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name}{tuple(weight.shape)}".encode() + _sample(weight))
    return digest.hexdigest()


def _sample(weight: Tensor) -> bytes:
    flat = weight.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // 61)][:64].float().cpu().contiguous().numpy().tobytes()


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Everything that turns text into ids: vocabulary, merges, normalisation, special tokens."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    return _hex(json.dumps({k: v for k, v in whole.items() if k not in _OF_THE_LAST_CALL}, sort_keys=True).encode())


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
