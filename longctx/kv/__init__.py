"""Which keys of a fixed context are read: policies, one method per file. ``compress``, ``read``, ``load`` are doors."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longctx.contexts import CompressedContext, compress, load
    from longctx.kv._scored import Scored
    from longctx.readings import Reading, read

__all__ = ["CompressedContext", "Reading", "Scored", "compress", "load", "read"]
_DOORS = {"Reading": "longctx.readings", "Scored": "longctx.kv._scored", "read": "longctx.readings"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'longctx.kv' has no attribute {name!r}")
    return getattr(importlib.import_module(_DOORS.get(name, "longctx.contexts")), name)
