"""Units drawn by lot: what any selector must beat. A baseline."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longctx.protocols import Corpus
from longctx.types import Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Random:
    """The draw follows from ``seed`` and the question, so each question gets its own."""

    baseline: ClassVar[bool] = True
    seed: int = 0

    def score(self, question: str, corpus: Corpus, budget_tokens: int) -> Scores:
        digest = hashlib.sha256(f"{self.seed}\0{question}".encode("utf-8", "surrogatepass")).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        return Scores(rng.random(len(corpus.units), dtype=np.float32))


PLUGIN = Random
