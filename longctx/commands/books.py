"""``longctx compile`` and ``longctx inspect``: documents into an artifact, and what an artifact holds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longctx.commands.ask import check, open_reader, read_documents
from longctx.commands.screen import Screen, size
from longctx.commands.settings import Settings
from longctx.errors import ArtifactError, UsageError
from longctx.store import folders
from longctx.store.artifact import damaged, open_artifact
from longctx.store.manifest import Manifest, SegmentKV, Summaries, check_words, load
from longctx.store.writer import KIND
from longctx.types import Document

_SHOWN = 20  # documents listed for people; --json has all


def compile_(
    paths: Sequence[str],
    out: Path,
    segment_kv: str | None,
    segment_form: str | None,
    add: bool,
    remove: Sequence[str],
    settings: Settings,
    screen: Screen,
) -> None:
    """``out`` holds the compiled documents of ``paths`` afterwards; what it held of the same text is kept."""
    check(settings)
    check_words(segment_kv or "auto", segment_form or "exact")
    folders.check(out, KIND)
    place, form = _stored_as(out) if add or remove else ("auto", "exact")
    segment_kv, segment_form = segment_kv or place, segment_form or form
    documents, replaced = _wanted(paths, out, add, remove, settings)
    screen.warn([f"{name} of {out} is replaced: its text is another now." for name in replaced])
    started = time.perf_counter()
    book = open_reader(settings, screen).compile(
        documents, path=out, segment_kv=segment_kv, segment_form=segment_form, progress=screen.progress
    )
    saved = book.saved
    assert saved is not None
    seconds = time.perf_counter() - started
    if screen.json:
        counts = {"documents": len(documents), "tokens": book.tokens, "seconds": round(seconds, 3)}
        screen.result({**saved.as_dict(), **counts, "replaced": replaced})
        return
    screen.line(f"{out}: {len(documents)} documents, {book.tokens:,} tokens, {size(saved.bytes)}")
    screen.note(
        f"segments: {saved.segment_kv} ({saved.segment_form}) | written {size(saved.written_bytes)} | read "
        f"{saved.tokens_read:,} tokens | embedded {saved.units_embedded:,} units | {seconds:.1f} s"
    )


def inspect(path: Path, verify: bool, screen: Screen) -> None:
    """Show what an artifact holds. With ``verify`` every file is checked, and a damaged one is exit code 4."""
    held = load(path)
    found = list(damaged(path, held)) if verify else []
    if not found:
        open_artifact(path)
    facts = _facts(path, held)
    if screen.json:
        screen.result({**facts, "verified": verify, "damaged": {entry.name: why for entry, why in found}})
    else:
        _show(held, facts, screen)
    if found:
        named = "; ".join(f"{entry.name}: {why}" for entry, why in found)
        raise ArtifactError(f"{len(found)} of {len(held.entries())} files of {path} are damaged or missing: {named}")
    if verify:
        screen.note(f"all {len(held.entries())} files are as they were written")


def _stored_as(out: Path) -> tuple[str, str]:
    """Where the artifact has its segments and in which form, so that adding and removing leave it so."""
    held = load(out)
    return _place(held), "exact" if held.kv is None else held.kv.form


def _place(held: Manifest) -> str:
    """What is kept of the segments, in the words of --segment-kv."""
    if held.kv is not None:
        return held.kv.residency
    return "none" if held.summaries is None else "summary"


def _wanted(
    paths: Sequence[str], out: Path, add: bool, remove: Sequence[str], settings: Settings
) -> tuple[list[Document], list[str]]:
    """The documents that the artifact shall hold, in order: those kept of it, then those of ``paths``.

    And the names of those whose text is another than what was held: files of one name in two folders are told apart
    only where both are named at once.
    """
    kept: dict[str, Document] = {}
    if add or remove:
        kept = {encoded.document.id: encoded.document for encoded in open_artifact(out).encoded}
        if unknown := [name for name in remove if name not in kept]:
            raise UsageError(f"{out} holds no document {unknown[0]!r}. It holds: {', '.join(kept)}.")
    elif not paths:
        raise UsageError("name one or more files: longctx compile FILE... -o BOOK.lctx.")
    documents = read_documents(paths, settings) if paths else []
    kept = {name: document for name, document in kept.items() if name not in remove}
    replaced = [d.id for d in documents if d.id in kept and kept[d.id].text != d.text]
    kept |= {document.id: document for document in documents}
    if not kept:
        raise UsageError(f"nothing would be left in {out}. Delete the folder instead.")
    return list(kept.values()), replaced


def _size(stored: SegmentKV | Summaries | None) -> int:
    """Bytes of the files of segments, each once."""
    return 0 if stored is None else sum(entry.size for entry in {segment.file for segment in stored.segments})


def _facts(path: Path, held: Manifest) -> dict[str, Any]:
    origin, kv, vectors = held.origin, held.kv, held.vectors
    return {
        "path": str(path),
        "model": origin.name,
        "dtype": origin.dtype.removeprefix("torch."),
        "fingerprints": {name: getattr(origin, name) for name in ("model", "tokenizer", "template", "frame")},
        "made_with": list(origin.versions),
        "splitter": origin.splitter,
        "segment_tokens": origin.segment_tokens,
        "documents": [
            {"id": d.id, "kind": d.kind, "pages": len(d.pages), "characters": d.characters, "tokens": d.tokens}
            for d in held.documents
        ],
        "tokens": sum(d.tokens for d in held.documents),
        "units": sum(d.units for d in held.documents),
        "segments": len(held.segments),
        "segment_kv": _place(held),
        "segment_form": None if kv is None else kv.form,
        "document_bytes": sum(d.file.size for d in held.documents),
        "embedding_bytes": 0 if vectors is None else sum(entry.size for entry in vectors.blocks),
        "copies_bytes": sum(order.file.size for order in held.copies),
        "summary_bytes": _size(held.summaries),
        "segment_bytes": _size(kv),
        "bytes": sum(entry.size for entry in held.entries()),
    }


def _show(held: Manifest, facts: dict[str, Any], screen: Screen) -> None:
    origin, kv = held.origin, held.kv
    counts = f"{facts['tokens']:,} tokens in {facts['units']:,} units and {facts['segments']:,} segments"
    stored = "not stored: read again when they are needed"
    if kv is not None:
        stored = f"{size(facts['segment_bytes'])} on disk, {kv.form}, used from {kv.residency}"
    embedded = facts["embedding_bytes"]
    screen.table(
        [
            ("compiled with", f"{origin.name} ({facts['dtype']}; {origin.model[:12]}), {', '.join(origin.versions)}"),
            ("cut by", f"{origin.splitter}, segments of {origin.segment_tokens} tokens"),
            ("holds", counts),
            ("documents", size(facts["document_bytes"])),
            ("embeddings", size(embedded) if embedded else "none"),
            (
                "where copies stand",
                size(facts["copies_bytes"]) if held.copies else "not stored: sorted when it is needed",
            ),
            ("summaries", size(facts["summary_bytes"]) if held.summaries is not None else "none"),
            ("keys and values", stored),
            ("in all", size(facts["bytes"])),
        ]
    )
    for document in held.documents[:_SHOWN]:
        pages = f", {len(document.pages)} pages" if document.pages else ""
        screen.line(f"  {document.id}  {document.kind}, {document.tokens:,} tokens{pages}")
    if len(held.documents) > _SHOWN:
        screen.line(f"  … and {len(held.documents) - _SHOWN} more")
