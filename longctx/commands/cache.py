"""``longctx ask --cache`` and ``longctx cache``: compiled forms of files that are kept for the next question.

Owns the key: content, model and everything that the compiled form depends on. Knows no format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from longctx.commands.screen import Screen, one_line, size
from longctx.commands.settings import Settings
from longctx.errors import ArtifactError
from longctx.store.cache import Cache, Kept
from longctx.store.manifest import OLDEST
from longctx.types import Document

if TYPE_CHECKING:
    from longctx.compiled import CompiledDocument
    from longctx.reader import Reader


def opened(
    reader: Reader, documents: Sequence[Document], settings: Settings, segment_kv: str, screen: Screen
) -> CompiledDocument:
    """The documents compiled, from the cache if it has them as they are; it has them afterwards.

    What is damaged is compiled again, and a warning says so.
    """
    path = cache_of(settings).place(_key(reader, documents, settings, segment_kv))
    if path.exists():
        try:
            return _used(reader.load(path, verify="full" if segment_kv == "none" else "lazy"), path, settings)
        except ArtifactError as error:
            screen.warn([f"{error} It is compiled again now."])
    return reader.compile(list(documents), path=path, segment_kv=segment_kv, progress=screen.progress)


def trim(settings: Settings, screen: Screen) -> None:
    """The cache is within its limit afterwards; what had to leave is told."""
    for one in cache_of(settings).trim():
        screen.note(f"left the cache (cache_bytes={settings.cache_bytes:,}): {_name(one)}, {size(one.bytes)}")


def show(settings: Settings, screen: Screen) -> None:
    """List what the cache holds, the latest used first."""
    cache = cache_of(settings)
    kept = cache.kept()
    total = sum(one.bytes for one in kept)
    if screen.json:
        rows = [
            {
                "path": str(one.path),
                "documents": list(one.documents),
                "model": one.model,
                "bytes": one.bytes,
                "used": datetime.fromtimestamp(one.used).isoformat(timespec="seconds"),
            }
            for one in kept
        ]
        screen.result({"kept": rows, "bytes": total, "limit_bytes": cache.limit_bytes, "folder": str(cache.folder)})
        return
    for one in kept:
        used = datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M")
        screen.line(f"{used}  {size(one.bytes):>9}  {_name(one)}")
    screen.line(f"{len(kept)} compiled documents, {size(total)} of {size(cache.limit_bytes)}, in {cache.folder}")


def clear(settings: Settings, screen: Screen) -> None:
    """Remove every compiled document of the cache that no process is writing."""
    removed, busy = cache_of(settings).clear()
    freed = sum(one.bytes for one in removed)
    if screen.json:
        screen.result({"removed": len(removed), "bytes": freed, "busy": len(busy)})
    else:
        screen.line(f"{len(removed)} compiled documents removed, {size(freed)}")
    if busy:
        screen.warn([f"{len(busy)} are being written by another process and were left."])


def cache_of(settings: Settings) -> Cache:
    from longctx.backend.places import cache_folder

    return Cache(cache_folder() / "compiled", settings.cache_bytes)


def _used(book: CompiledDocument, path: Path, settings: Settings) -> CompiledDocument:
    cache_of(settings).used(path)
    return book


def _key(reader: Reader, documents: Sequence[Document], settings: Settings, segment_kv: str) -> str:
    made_with = (settings.splitter, settings.segment_tokens, settings.encoder, segment_kv)
    digest = hashlib.sha256(json.dumps([OLDEST, reader.fingerprint, *made_with]).encode("ascii"))
    for document in documents:
        pages = [(page.number, page.start, page.end, page.label) for page in document.pages]
        facts = (document.id, document.kind, document.language, document.warnings, pages, len(document.text))
        digest.update(json.dumps(facts).encode("ascii"))
        digest.update(document.text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def _name(one: Kept) -> str:
    return one_line(", ".join(one.documents), 80) or f"{one.path.name} (unfinished or damaged)"
