"""Documents to tokens and units: the first door. Knows no model beyond its tokenizer, and no question."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from longctx.errors import BadOption, EmptyInput
from longctx.protocols import Progress, Splitter
from longctx.types import Document, EncodedDocument, Unit


def documents_of(source: Document | Sequence[Document]) -> list[Document]:
    """One or several documents as a list. Raises BadOption for anything else and EmptyInput for one without text."""
    several = isinstance(source, Iterable) and not isinstance(source, (str, bytes))
    found: list[Any] = list(source) if several else [source]  # type: ignore[arg-type]
    if not found or not all(isinstance(document, Document) for document in found):
        given = "a list of " * several + (", ".join(sorted({_kind(one) for one in found})) or "nothing")
        raise BadOption(
            f"documents must be a Document, a list of them or a CompiledDocument, not {given}. longctx.read makes them "
            "of files, Document.from_text of a string."
        )
    names = [document.id for document in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadOption(
            f"two documents have the same id: {', '.join(map(repr, twice))}. Give each its own, as in "
            "Document.from_text(text, id='memo')."
        )
    for document in found:
        if not document.text.strip():
            why = f"{len(document.text)} characters of white space" if document.text else "it is empty"
            raise EmptyInput(f"document {document.id!r} has no text ({why}).")
    return found


def _kind(value: object) -> str:
    """The name of its type, with the module where that is no part of Python."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


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
