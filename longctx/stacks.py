"""The drafters of a request by name or as objects: the library's own, the user's, or Hugging Face's generators.

Owns the default stack. Knows no method otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longctx import plugins
from longctx.backend.candidates import adapted
from longctx.errors import BadOption
from longctx.protocols import Drafter

Drafters = str | Sequence[Any]
"""Names (``"name:option=value"``), Drafter objects, or objects with Hugging Face's ``get_candidates``."""

Stack = Sequence[tuple[str, Drafter]]

AUTO: tuple[str, ...] = ("document", "recycling")


def resolve(drafters: Drafters) -> list[tuple[str, Drafter]]:
    """Names and objects of the drafters asked for; ``auto`` is the default stack."""
    if isinstance(drafters, str):
        drafters = AUTO if drafters == "auto" else (drafters,)
    found = [(_name(drafter), adapted(plugins.resolve("drafters", drafter))) for drafter in drafters]
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise BadOption(f"a drafter is named twice: {', '.join(names)}.")
    return found


def _name(drafter: Any) -> str:
    return drafter.partition(":")[0] if isinstance(drafter, str) else type(drafter).__name__.lower()
