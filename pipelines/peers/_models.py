"""A Hugging Face model as a peer loads it, the same model that longctx reads, and what its passes read.

Owns the differences between releases of transformers. Knows no method; run by the Python of a peer's environment.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

_TABLE_OF_RELEASE = 5  # the major release of transformers that keeps rotary settings in one table


def load(asked: Mapping[str, Any], attention: str) -> tuple[Any, Any]:
    """Model and tokenizer of the folder ``asked["model"]``, greedy and in evaluation mode.

    A folder written by a newer transformers keeps its rotary settings where an older one does not look, which would
    silently turn them into defaults: they are put where it looks.
    """
    import torch
    import transformers

    if asked.get("threads"):
        torch.set_num_threads(asked["threads"])
    folder = asked["model"]
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    rotary = getattr(config, "rope_parameters", None)
    if rotary and int(transformers.__version__.split(".")[0]) < _TABLE_OF_RELEASE:
        config.rope_theta = rotary["rope_theta"]
        if rotary.get("rope_type", "default") != "default":
            config.rope_scaling = {name: value for name, value in rotary.items() if name != "rope_theta"}
    dtype = "auto" if asked["dtype"] == "auto" else getattr(torch, asked["dtype"])
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation=attention, use_safetensors=True, trust_remote_code=False
    )
    device = asked["device"] if asked["device"] != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    model.generation_config.do_sample = False
    # the class by name: a folder may name a class of tokenizers that an older release does not know
    names = ["input_ids", "attention_mask"]  # it would give token types too, which generate refuses
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder, model_input_names=names)
    return model, tokenizer


def facts(model: Any, *packages: str) -> dict[str, Any]:
    """What rows say of a loaded model and of the ``packages`` that run it."""
    from importlib.metadata import version

    import torch

    return {
        "versions": {name: version(name) for name in (*packages, "torch", "transformers")},
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
    }


def check(model: Any, ids: list[int]) -> list[int]:
    """The likeliest token after each of ``ids``."""
    import torch

    with torch.inference_mode():
        found: list[int] = model(torch.tensor([ids], device=model.device)).logits[0].argmax(-1).tolist()
    return found


class Passes:
    """While it is open, counts what passes through a model: the tokens of each, when it began and ended.

    ``prompt`` are the ids of the latest pass of more than one token.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._hooks = model.base_model, []  # type: ignore[var-annotated]
        self.tokens: list[int] = []
        self.began: list[float] = []
        self.ended: list[float] = []
        self.prompt: Any = None

    def __enter__(self) -> Passes:
        self._hooks = [
            self._model.register_forward_pre_hook(self._before, with_kwargs=True),
            self._model.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        self.tokens.append(int(ids.shape[1]))
        self.began.append(time.perf_counter())
        if ids.shape[1] > 1:
            self.prompt = ids[0]

    def _after(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        self.ended.append(time.perf_counter())
