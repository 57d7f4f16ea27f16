"""Which keys of a fixed context are read: policies, one method per file. ``compress`` and ``load`` are the door."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longctx.contexts import CompressedContext, compress, load

__all__ = ["CompressedContext", "compress", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'longctx.kv' has no attribute {name!r}")
    return getattr(importlib.import_module("longctx.contexts"), name)
