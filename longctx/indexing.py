"""Documents to tokens and units: the first door. Knows no model beyond its tokenizer, and no question."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from longctx.errors import BadOption, EmptyInput
from longctx.protocols import Progress, Splitter
from longctx.types import Document, EncodedDocument, Unit


def documents_of(source: Document | Sequence[Document]) -> list[Document]:
    """One or several documents as a list. Raises BadOption for anything else and EmptyInput for one without text."""
    found: list[Any] = list(source) if isinstance(source, Iterable) else [source]
    if not found or not all(isinstance(document, Document) for document in found):
        raise BadOption("documents must be a Document, a list of them or a CompiledDocument; longctx.read makes them.")
    names = [document.id for document in found]
    if len(set(names)) != len(names):
        raise BadOption(f"two documents have the same id: {sorted({n for n in names if names.count(n) > 1})}.")
    for document in found:
        if not document.text.strip():
            raise EmptyInput(f"document {document.id!r} has no text ({len(document.text)} characters of white space).")
    return found


def encode(
    documents: Sequence[Document],
    tokenise: Callable[[Document], EncodedDocument],
    splitter: Splitter,
    report: Progress | None,
) -> tuple[list[EncodedDocument], list[Unit], tuple[str, ...]]:
    """Tokens of every document, the units of all in order, and the warnings of reading and splitting."""
    encoded: list[EncodedDocument] = []
    units: list[Unit] = []
    warnings: list[str] = []
    for number, document in enumerate(documents):
        tokens = tokenise(document)
        encoded.append(tokens)
        for span in splitter.split(tokens):
            first, last = tokens.token_at(span.start), tokens.token_at(span.end)
            units.append(Unit(len(units), number, span.start, span.end, first, last, span.context))
        warnings += [f"{document.id}: {warning}" for warning in (*document.warnings, *splitter.warnings(tokens))]
        if report is not None:
            report("tokenising", number + 1, len(documents))
    return encoded, units, tuple(warnings)
