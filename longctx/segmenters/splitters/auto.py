"""The default: code along its syntax where its grammar is installed, everything else by sentences."""

from __future__ import annotations

from dataclasses import dataclass

from longctx.errors import installing
from longctx.segmenters.splitters._packing import check_cap
from longctx.segmenters.splitters._syntax import EXTRA, GRAMMARS, why_unavailable
from longctx.segmenters.splitters.code import Code
from longctx.segmenters.splitters.sentences import Sentences
from longctx.types import EncodedDocument, Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Auto:
    """The splitter that suits the document; ``warnings`` says when it is not the one its kind asks for.

    ``max_tokens`` and ``min_tokens`` replace the defaults of the chosen splitter.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None

    def __post_init__(self) -> None:
        given = self._given()
        check_cap("auto", "max_tokens", given.get("max_tokens", Sentences().max_tokens), given.get("min_tokens", 0))

    def split(self, encoded: EncodedDocument) -> tuple[Span, ...]:
        """Spans that tile the text, each at most the cap of the chosen splitter."""
        by_syntax = encoded.document.kind == "code" and not _lacking(encoded.document.language)
        chosen = Code if by_syntax else Sentences
        return chosen(**self._given()).split(encoded)

    def warnings(self, encoded: EncodedDocument) -> tuple[str, ...]:
        """Says that code is split by sentences, and why."""
        if encoded.document.kind != "code":
            return ()
        lacking = _lacking(encoded.document.language)
        return (f"code was split by sentences, not by syntax: {lacking}",) if lacking else ()

    def _given(self) -> dict[str, int]:
        values = {"max_tokens": self.max_tokens, "min_tokens": self.min_tokens}
        return {name: value for name, value in values.items() if value is not None}


def _lacking(language: str) -> str:
    """What is missing to parse ``language``; empty when nothing is."""
    if language not in GRAMMARS:
        return f"no grammar is known for the language {language!r}."
    package = why_unavailable(language)
    return f"{package} is not installed.  {installing(EXTRA)}" if package else ""


PLUGIN = Auto
