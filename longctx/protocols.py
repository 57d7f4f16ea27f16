"""The verbs: what a splitter, a selector and the rooms handed to them can be asked. One page, no code.

Knows the nouns of ``types`` and nothing else. Protocols are satisfied by shape; nothing here is inherited.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from longctx.types import EncodedDocument, Span


class Splitter(Protocol):
    """Cuts a document into units. Frozen: all options are fields."""

    def split(self, encoded: EncodedDocument) -> Sequence[Span]:
        """Non-empty spans in order that tile the text exactly; each at most the splitter's hard cap of tokens."""
        ...
