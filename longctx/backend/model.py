"""Loads a model and tokenizer, or wraps those of the caller, and says what can be done with them.

Owns names, dtypes, devices, the window and the fingerprint. Remote code is never run and pickled weights are never
read. Knows no document and no method.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from longctx.backend.embedded import embedded_model
from longctx.backend.rope import stated
from longctx.backend.stamps import adapters_of
from longctx.errors import DoesNotFit, ModelError, UsageError
from longctx.protocols import Progress

_DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}
_SAYS_NOTHING = {  # of keys and values: saving changes some, callers set others for padding and for what is returned
    "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures", "pad_token_id", "bos_token_id",
    "eos_token_id", "output_hidden_states", "output_attentions", "return_dict", "id2label", "label2id", "problem_type",
}  # fmt: skip
_RESERVED = 8  # rows more than positions that a table has at most: some models begin behind a few
_NO_LIMIT = 10**9  # tokenizers without a limit report an absurd one


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to read: the plain Hugging Face objects and what the library needs to know of them."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    window: int

    @property
    def device(self) -> torch.device:
        return self.model.device


def from_pretrained(
    name: str | Path, dtype: str | torch.dtype = "auto", device: str = "auto", progress: Progress | None = None
) -> Loaded:
    """The model and tokenizer of a hub id, a local folder, or ``"embedded"``.

    ``dtype="auto"`` is the dtype the weights are stored in. Raises ModelError for anything that is no usable model.
    """
    label, target, wanted = _label(name), _device(device), _dtype(dtype)
    where = _where(label, progress)
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        found: Any = AutoModelForCausalLM.from_pretrained(
            where, config=config, dtype=wanted, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(_load_message(label, error)) from error
    model, info = found
    if missing := sorted(info["missing_keys"]):  # transformers would go on with random numbers in their place
        raise ModelError(f"{label} lacks {len(missing)} of the model's weights, the first being {missing[0]}.")
    try:
        model = model.to(target).eval()
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"{label} cannot be moved to {target}: {_first_line(error)} Use device='cpu'.") from error
    return wrap(model, tokenizer, label)


def tokenizer_alone(name: str | Path, progress: Progress | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of what ``from_pretrained`` would load, without the weights. Raises ModelError as it does."""
    label = _label(name)
    where = _where(label, progress)
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(_load_message(label, error)) from error
    return found


def wrap(model: Any, tokenizer: Any, name: str = "") -> Loaded:
    """The caller's own model, unchanged: same dtype, device, attention implementation and adapters."""
    check_model(model)
    if not callable(tokenizer):
        raise ModelError(f"{type(tokenizer).__name__} is not a Hugging Face tokenizer; pass AutoTokenizer's object.")
    label = name or str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    return Loaded(label, model, tokenizer, window(model, tokenizer))


def check_model(model: Any) -> None:
    """Raises ModelError for what is no model, as a name is, or a reader."""
    if not hasattr(model, "config") or not callable(getattr(model, "forward", None)):
        raise ModelError(f"{type(model).__name__} is not a Hugging Face model; pass AutoModelForCausalLM's object.")


def window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The trained length in tokens. Raises ModelError where neither configuration nor tokenizer states one."""
    if (stated := stated_window(model)) is not None:
        return stated
    limit = getattr(tokenizer, "model_max_length", None)
    if isinstance(limit, int) and 0 < limit < _NO_LIMIT:
        return limit
    raise ModelError(
        f"{type(model).__name__} states no window; set config.max_position_embeddings to the trained length."
    )


def stated_window(model: PreTrainedModel) -> int | None:
    """The trained length in tokens that the configuration states, or None."""
    return stated(model.config)


def beyond_window(model: PreTrainedModel, tokens: int, reach: int) -> tuple[str, ...]:
    """A warning where ``tokens`` of a context, read at once, stand at distances the model was not trained for.

    ``reach`` is how far before the last token read one of them seems to stand.
    """
    trained = stated_window(model)
    if trained is None or reach <= trained:
        return ()
    what = f"{tokens} tokens of the context are read at once"
    if reach != tokens:
        what = f"{tokens} tokens of the context are read at once, from up to {reach} tokens away,"
    return (
        f"{what} and the model was trained with {trained}: what it says of so many is not to be relied on. longheads "
        f"with a smaller budget reads longer texts.",
    )


def check_places(model: PreTrainedModel, tokens: int) -> None:
    """Raises DoesNotFit where the model looks positions up in a table that ends before so many ``tokens``."""
    trained, words = stated_window(model), model.get_input_embeddings()
    if trained is None or tokens <= trained:
        return
    tables = (part for part in model.modules() if isinstance(part, torch.nn.Embedding) and part is not words)
    if any(trained <= table.num_embeddings <= trained + _RESERVED for table in tables):
        raise DoesNotFit(
            f"{tokens} tokens pass the {trained} that {type(model).__name__} has positions for. Give a shorter text; "
            "Reader.ask finds what matters in longer ones."
        )


def past_window(model: PreTrainedModel, tokens: int) -> tuple[str, ...]:
    """A warning where ``tokens``, of a prompt and what was said to it, pass what the model was trained with."""
    trained = stated_window(model)
    if trained is None or tokens <= trained:
        return ()
    return (
        f"{tokens} tokens of prompt and answer pass the {trained} that the model was trained with: what it says of so "
        f"many is not to be relied on. Reader.ask finds what matters in longer texts.",
    )


@torch.inference_mode()
def fingerprint(loaded: Loaded) -> str:
    """A hash of configuration, vocabulary and a sample of every weight: equal for equal models, whatever their name."""
    digest = hashlib.sha256()
    _add_model(digest, loaded.model)
    vocabulary = loaded.tokenizer.get_vocab()
    digest.update(json.dumps(sorted(vocabulary.items()), ensure_ascii=True).encode())
    digest.update(str(getattr(loaded.tokenizer, "chat_template", "")).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


@torch.inference_mode()
def model_fingerprint(model: PreTrainedModel) -> str:
    """The same of a model alone, without its tokenizer. Raises ModelError for what is none."""
    check_model(model)
    digest = hashlib.sha256()
    _add_model(digest, model)
    return digest.hexdigest()


def _add_model(digest: Any, model: PreTrainedModel) -> None:
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        if not key.startswith("_") and key not in _SAYS_NOTHING
    }
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(str(model.dtype).encode())
    for name, weight in model.named_parameters():
        if weight.is_meta:
            raise ModelError(
                f"weights of {type(model).__name__} are not in memory, {name} the first of them, so nothing says which "
                "model it is. Load it without offloading: on one device, or on several that hold it whole."
            )
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 61)][:64].float().cpu().contiguous()
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    for name, module in model.named_modules():
        if at_work := adapters_of(module):
            digest.update(f"{name}{at_work}".encode())


def _label(name: object) -> str:
    """The name of a model as a string. Raises UsageError for what is no name."""
    if not isinstance(name, (str, Path)) or not str(name):
        raise UsageError(f"{name!r:.80} names no model. Name a folder that holds config.json, a hub id, or 'embedded'.")
    return str(name)


def _where(label: str, progress: Progress | None) -> str | Path:
    """The folder or hub id to load from."""
    where = embedded_model(progress) if label == "embedded" else label
    folder = Path(where).expanduser()
    if folder.exists():
        _check_folder(folder, label)
        return folder
    if label.startswith(("/", "~", ".")) or label.count("/") > 1:  # no hub id looks like this
        raise ModelError(f"{label}: no such folder. Name the folder that holds config.json, a hub id, or 'embedded'.")
    return where


def _device(device: str) -> torch.device:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device {device!r} is unknown. Use auto, cpu, cuda, cuda:0 or mps.") from error


def _dtype(dtype: str | torch.dtype) -> Any:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return "auto"
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise UsageError(f"dtype {dtype!r} is unknown. Use auto, {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def _check_folder(folder: Path, label: str) -> None:
    """What can be said of a local folder before anything is loaded from it."""
    if not folder.is_dir():
        raise ModelError(f"{label} is a file. Name the folder that holds config.json, or a hub id.")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{label} has no config.json, so it is no Hugging Face model folder.")
    weights = {path.suffix for path in folder.iterdir()}
    if ".safetensors" not in weights and weights & {".bin", ".pt", ".pth"}:
        raise ModelError(
            f"{label} holds pickled weights only (.bin), which can run code when loaded. Convert them to "
            "safetensors with model.save_pretrained(folder)."
        )


def _load_message(label: str, error: Exception) -> str:
    text = str(error)
    if "trust_remote_code" in text or "custom code" in text:
        return f"{label} needs code from its own repository, which is never run. Use a model that transformers knows."
    return f"{label} cannot be loaded as a model: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
