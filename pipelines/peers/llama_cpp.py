"""llama.cpp through llama-cpp-python: the whole prompt, read and answered greedily by another engine.

It reads a GGUF file, whose numbers are not those of the Hugging Face folder beside it; rows name the file's hash. The
package is a source distribution: where it does not build, rows say so.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ._serve import Refused

NAME, TORCH = "llama.cpp", False
REQUIRES = ("llama-cpp-python==0.3.36",)
OPTIONS: dict[str, Any] = {"gguf": ""}
FILES = ("gguf",)


def load(asked: Mapping[str, Any]) -> Engine:
    return Engine(asked)


class Engine:
    """One GGUF file, with room for the longest prompt of the grid."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        from llama_cpp import Llama

        file = Path(asked["options"]["gguf"])
        if not asked["options"]["gguf"] or not file.is_file():
            raise Refused("llama.cpp reads a GGUF file: name it as peer:llama.cpp:gguf=FILE")
        self._engine = Llama(
            str(file), n_ctx=asked["longest"], n_threads=asked.get("threads") or None, verbose=False, seed=0
        )
        with file.open("rb") as data:
            digest = hashlib.file_digest(data, "sha256").hexdigest()
        self.facts = {"versions": {"llama-cpp-python": version("llama-cpp-python")}, "gguf_sha256": digest}

    def check(self, ids: list[int]) -> None:
        """Other numbers than the folder's: not compared."""

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        prompt = [*asked["context_ids"], *asked["question_ids"], *asked["after_ids"]]
        started, first = time.perf_counter(), 0.0
        new: list[int] = []
        for token in self._engine.generate(prompt, temp=0.0, reset=True):
            first = first or time.perf_counter()
            if token == self._engine.token_eos() or len(new) == asked["max_new_tokens"]:
                break
            new.append(token)
        text = self._engine.detokenize(new).decode("utf-8", "replace")
        return {
            "text": text.strip(),
            "measured": {"prompt_tokens": len(prompt), "new_tokens": len(new)},
            "seconds": {"prefill": first - started, "decode": time.perf_counter() - first},
        }
