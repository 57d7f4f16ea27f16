"""longctx: compile a long document once, then ask an existing Hugging Face model any question about it.

This file lists the public names. Each is imported when it is first asked for, so ``import longctx`` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longctx import errors, kv
    from longctx.compiled import CompiledDocument
    from longctx.documents.limits import Limits
    from longctx.documents.reader import read
    from longctx.errors import LongctxError
    from longctx.generated import Generation
    from longctx.generation import generate, speculative
    from longctx.reader import Reader
    from longctx.types import Answer, Citation, Document, Event, Page, Scores, SelectedSpan, Selection, Step

__version__ = "0.1.0"

_HOMES = {
    "Answer": "longctx.types",
    "Citation": "longctx.types",
    "CompiledDocument": "longctx.compiled",
    "Document": "longctx.types",
    "Event": "longctx.types",
    "Generation": "longctx.generated",
    "Limits": "longctx.documents.limits",
    "LongctxError": "longctx.errors",
    "Page": "longctx.types",
    "Reader": "longctx.reader",
    "Scores": "longctx.types",
    "SelectedSpan": "longctx.types",
    "Selection": "longctx.types",
    "Step": "longctx.types",
    "errors": "longctx.errors",
    "generate": "longctx.generation",
    "kv": "longctx.kv",
    "read": "longctx.documents.reader",
    "speculative": "longctx.generation",
}

__all__ = [
    "Answer",
    "Citation",
    "CompiledDocument",
    "Document",
    "Event",
    "Generation",
    "Limits",
    "LongctxError",
    "Page",
    "Reader",
    "Scores",
    "SelectedSpan",
    "Selection",
    "Step",
    "errors",
    "generate",
    "kv",
    "read",
    "speculative",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'longctx' has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    found = home if name in ("errors", "kv") else getattr(home, name)  # these are modules of public names
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
