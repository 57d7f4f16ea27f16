"""A story with facts, an encoder without a model, and readers that are alike: what the tests of stored books share."""

from __future__ import annotations

from typing import Any

import numpy as np
import tiny

from longctx import Document, Reader
from longctx.types import Page, Selection

QUESTION = "Where is the kettle of Tobin kept?"
NAMES, THINGS = ("Mara", "Tobin", "Ilse", "Kofi", "Dray"), ("ledger", "kettle", "lamp", "chair", "letter")
LINES = [
    f"{name} keeps the {thing} in room {10 * a + b}. The street was quiet that winter, and report {b} said so.\n\n"
    for a, name in enumerate(NAMES)
    for b, thing in enumerate(THINGS)
]
TEXT = "".join(LINES)
DOCUMENT = Document("story", TEXT, (Page(1, 0, 500, "i"), Page(2, 500, len(TEXT))), warnings=("a page is missing.",))


class Encoder:
    """Sentence vectors without a model: how often each letter stands in a text; it counts what it is asked."""

    why_unavailable = ""

    def __init__(self, fingerprint: str = "letters") -> None:
        self.fingerprint = fingerprint
        self.asked: list[str] = []

    def __call__(self, temperature: float = 1.0) -> Encoder:
        return self

    def encode(self, texts: Any, *, progress: Any = None) -> np.ndarray:
        self.asked += texts
        counts = np.array([[t.lower().count(chr(97 + i)) for i in range(26)] for t in texts], dtype=np.float32) + 0.01
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


MODEL = tiny.model("qwen3", num_hidden_layers=2)


def reader_of(model: Any = MODEL, template: str = "system", encoder: Any = None, **options: Any) -> Reader:
    settings: dict[str, Any] = {"calibration": None, "segment_tokens": 96, "encoder": None} | options
    reader = Reader(model, tiny.tokenizer(template), **settings)
    reader._compiler._encoders = encoder or Encoder()
    return reader


def found(selection: Selection) -> list[tuple[str, int, int, int | None]]:
    return [(span.document_id, span.start, span.end, span.page) for span in selection.spans]
