"""What a model is and what can be done with it, found without loading its weights unless they are to be tried.

Owns the facts: layers by kind, heads, window, sizes in bytes, the chat template, and which abilities the model has and
why it lacks the others. Knows no document and no method.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from longctx.backend import model as loading
from longctx.backend.anatomy import UNFIT, Unlike
from longctx.backend.arithmetic import arithmetic
from longctx.backend.attention import installed
from longctx.backend.capability import capability, no_rows
from longctx.backend.compressing import BOUNDED, kinds, possible
from longctx.backend.fitness import bounded_kinds, readable
from longctx.backend.footprint import head_dim, kv_heads, measured
from longctx.backend.lean import Lean
from longctx.backend.probe import Probe
from longctx.backend.rotary import rotation, turns
from longctx.backend.tokens import Tokens
from longctx.errors import LongctxError, ModelError
from longctx.kernels import few_queries, few_rows
from longctx.protocols import Progress


@dataclass(frozen=True, slots=True)
class Report:
    """``reading_dtype`` is the format in which segments are read, which may be wider than that of the weights.

    ``layer_parameters`` are those that every token is multiplied by: the tables of tokens, in front and behind, not.

    Of ``kv_bytes_per_token``, ``sliding_bytes_per_token`` are kept in a ``sliding_window`` only (0: there is none).

    ``abilities`` maps what the library does to the reason why this model cannot; an empty reason means it can.
    ``tried``: as passes of the model have shown; else as far as its configuration says.
    """

    name: str
    architecture: str
    parameters: int
    layer_parameters: int
    weight_bytes: int
    dtype: str
    reading_dtype: str
    device: str
    threads: int
    layers: Mapping[str, int]
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocabulary: int
    window: int
    kv_bytes_per_token: int
    sliding_bytes_per_token: int
    sliding_window: int
    template: str
    frame_tokens: int
    cache_layers: Mapping[str, list[int]]
    abilities: Mapping[str, str]
    tried: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def report(
    name: str,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
    encoder: str = "",
    trial: bool = False,
) -> Report:
    """The report of a hub id, a local folder or ``"embedded"``; its weights are neither read nor downloaded.

    With a ``trial`` they are, and what passes of the model tell is tried by them. ``encoder`` is why there is no
    sentence encoder, empty where there is one. Raises ModelError for what is no model.
    """
    target = loading._device(device)
    model: Any
    if trial:
        loaded = loading.from_pretrained(name, dtype, device, progress)
        model, tokenizer = loaded.model, loaded.tokenizer
    else:
        model, tokenizer = _unloaded(name, dtype, progress)
    text = model.config.get_text_config(decoder=True)
    heads = int(getattr(text, "num_attention_heads", 0) or 0)
    layers = Counter(getattr(text, "layer_types", None) or get_layer_types_and_kwargs(text)[0])
    widths = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    per_token, slides, window = measured(model)
    template, frame_tokens, why_not_asked = _template(tokenizer)
    why_not_lean = why_not_asked or _why_not(lambda: _lean(model))
    reading = model.dtype if why_not_lean else arithmetic(model.dtype, target)
    tables = {id(table.weight) for table in (model.get_input_embeddings(), model.get_output_embeddings()) if table}
    return Report(
        name=name,
        architecture=type(model).__name__,
        parameters=sum(weight.numel() for weight in model.parameters()),
        layer_parameters=sum(weight.numel() for weight in model.parameters() if id(weight) not in tables),
        weight_bytes=sum(weight.nbytes for weight in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        reading_dtype=str(reading).removeprefix("torch."),
        device=str(target),
        threads=torch.get_num_threads(),
        layers=dict(layers),
        heads=heads,
        kv_heads=kv_heads(text) if heads else 0,
        head_dim=head_dim(text) if heads else 0,
        hidden=int(text.hidden_size),
        intermediate=max(map(int, widths)) if isinstance(widths, list | tuple) else int(widths),
        vocabulary=int(text.vocab_size),
        window=loading.window(model, tokenizer),
        kv_bytes_per_token=per_token,
        sliding_bytes_per_token=slides,
        sliding_window=window,
        template=template,
        frame_tokens=frame_tokens,
        cache_layers=_cache_layers(model, trial),
        abilities={
            "answers with citations": why_not_asked,
            "reads by segments (auto, infiniretri, xl3m)": why_not_asked
            or _why_not(lambda: _read(model, tokenizer, trial)),
            "sums up the keys of segments (the selector longheads)": why_not_asked
            or _why_not(lambda: _sum_up(model, tokenizer, trial)),
            "reads by lean layers (faster)": why_not_lean,
            "decodes by a compiled kernel (faster)": why_not_lean
            or _why_no_kernel(model, target, int(text.hidden_size), few_rows.version),
            "attends to long texts by a compiled kernel (faster)": _why_no_kernel(
                model, target, head_dim(text) if heads else 0, few_queries.version
            ),
            "reads a bounded cache (kv policies)": _why_not(lambda: _compress(model, trial)),
            "moves keys of a text (kv longheads, lm_infinite)": _why_not(lambda: _move(model, trial)),
            "verifies drafts as trees (speculation)": _why_not(lambda: _verify(model, trial)),
            "embeds text (auto, dense)": encoder,
        },
        tried=trial,
    )


def _unloaded(name: str, dtype: str, progress: Progress | None) -> tuple[Any, Any]:
    """The model without its weights, and its tokenizer."""
    wanted = loading._dtype(dtype)
    source = str(loading._where(loading._label(name), progress))
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):
            stored = wanted if wanted != "auto" else getattr(config, "dtype", None)
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=stored, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(loading._load_message(name, error)) from error
    return model, tokenizer


def _template(tokenizer: Any) -> tuple[str, int, str]:
    """What frames a prompt, how many tokens it takes, and why no prompt can be framed (empty where one can)."""
    try:
        frame = Tokens(tokenizer).frame()
    except ModelError as error:
        return "unusable", 0, str(error)
    plain = "none: instruction, text, question, 'Answer:'"
    kind = "chat template" if getattr(tokenizer, "chat_template", None) else plain
    return kind, frame.tokens, ""


def _read(model: PreTrainedModel, tokenizer: Any, trial: bool) -> Probe:
    """A reader of segments. Raises ModelError where the model cannot be read by segments."""
    probe = Probe(model, Tokens(tokenizer))
    with installed(model):
        pass
    return readable(probe) if trial else probe


def _sum_up(model: PreTrainedModel, tokenizer: Any, trial: bool) -> None:
    """Raises ModelError where nothing can stand for the keys of a segment."""
    if why := _read(model, tokenizer, trial).no_summaries:
        raise ModelError(why)


def _lean(model: PreTrainedModel) -> None:
    """Raises ModelError where the model is not built of the layers that can be run without its own code."""
    try:
        Lean(model)
    except Unlike as difference:
        raise ModelError(str(difference)) from difference


def _cache_layers(model: PreTrainedModel, trial: bool) -> dict[str, list[int]]:
    """What can be done with the cache of which layers, in words."""
    found = possible(model)
    why = _why_not(lambda: bounded_kinds(model, partial=True)) if trial else ""
    return {f"not possible: {why}" if why and words == BOUNDED else words: own for words, own in found.items()}


def _compress(model: PreTrainedModel, trial: bool) -> list[str]:
    """What each layer is. Raises ModelError where the model's cache cannot be bounded."""
    if trial:
        return bounded_kinds(model)
    with installed(model):
        return kinds(model)


def _move(model: PreTrainedModel, trial: bool) -> None:
    """Raises ModelError where no cache can be bounded by moving the model's keys to other positions."""
    found = _compress(model, trial)
    if trial:
        turns(model, found)
    else:
        rotation(model)


def _verify(model: PreTrainedModel, trial: bool) -> None:
    """Raises ModelError where the model verifies chains of drafts only, or none."""
    if not trial:
        if why := no_rows(model):
            raise ModelError(why)
        return
    found = capability(model)
    if found.rows != "tree":
        instead = "chains are" if found.rows == "chain" else "none are, and each token takes a pass"
        raise ModelError(f"{found.reason}; {instead}")


def _why_no_kernel(
    model: PreTrainedModel, device: torch.device, width: int, version: Callable[[torch.dtype, int], str]
) -> str:
    if device.type != "cpu":
        return f"it is for a CPU, and the model is on {device}"
    if not width:
        return "the model has no attention heads"
    if version(model.dtype, width):
        return ""
    return f"llvmlite does not work here, PyTorch's threads are out of reach, or {width} is no multiple of 16"


def _why_not(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except LongctxError as error:
        return str(error)
    except torch.OutOfMemoryError:  # says nothing of the model
        raise
    except UNFIT as error:  # a pass of the model failed
        return f"{type(error).__name__}: {error}"
    return ""
