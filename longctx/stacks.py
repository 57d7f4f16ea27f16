"""The drafters of a request by name or as objects: the library's own, the user's, or Hugging Face's generators.

Owns the default stack. Knows no method otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from longctx import plugins
from longctx.backend.candidates import adapted
from longctx.errors import BadOption
from longctx.protocols import Drafter

Drafters = str | Drafter | Sequence[Any]
"""A name (``"name:option=value"``, several as in ``"a+b"``), a Drafter, an object with Hugging Face's
``get_candidates``, or a list of them."""

Stack = Sequence[tuple[str, Drafter]]

AUTO: tuple[str, ...] = ("document", "recycling")


def resolve(drafters: Drafters) -> list[tuple[str, Drafter]]:
    """Names and objects of the drafters asked for; ``auto`` is the default stack, ``none`` is no one.

    Raises UnknownMethod and BadOption for what is no drafter, and for one that is named twice.
    """
    if isinstance(drafters, str):
        named = tuple(name.strip() for name in drafters.split("+"))
        drafters = {"auto": AUTO, plugins.NONE: ()}.get(drafters, named)
    elif not isinstance(drafters, type) and any(hasattr(drafters, asked) for asked in ("begin", "get_candidates")):
        drafters = (drafters,)
    if not isinstance(drafters, Collection):  # an iterator would be empty the second time
        raise BadOption(f"drafters={drafters!r:.80} must be 'auto', 'none', a name, or a list of names and objects.")
    found = [(_name(drafter), plugins.resolve("drafters", adapted(drafter))) for drafter in drafters]
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise BadOption(f"a drafter is named twice: {', '.join(names)}.")
    return found


def _name(drafter: Any) -> str:
    return drafter.partition(":")[0] if isinstance(drafter, str) else type(drafter).__name__.lower()
