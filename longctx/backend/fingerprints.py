"""What a stored document depends on, told apart: the model, its tokenizer, its chat template, the prompt's frame.

Owns the hashes. ``model.fingerprint`` is one hash of the first three; these say which of them differs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from longctx.backend.model import Loaded, model_fingerprint
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
    return Fingerprints(model_fingerprint(loaded.model), _tokenizer(loaded.tokenizer), _hex(template), _hex(fixed))


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Everything that turns text into ids: vocabulary, merges, normalisation, special tokens."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    return _hex(json.dumps({k: v for k, v in whole.items() if k not in _OF_THE_LAST_CALL}, sort_keys=True).encode())


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
