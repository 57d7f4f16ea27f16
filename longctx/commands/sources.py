"""What a question is asked about: files that are read now, or one compiled document.

Owns how the two are told apart and what is checked of them before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from longctx.commands.screen import Screen
from longctx.commands.settings import Settings
from longctx.errors import ArtifactError, UsageError
from longctx.types import Document

if TYPE_CHECKING:
    from longctx.compiled import CompiledDocument
    from longctx.reader import Reader

SUFFIX = ".lctx"


@dataclass(frozen=True, slots=True)
class Cached:
    """Whether the compiled form of files is kept for the next question, and whether with keys and values."""

    wanted: bool = False
    segment_kv: str = "none"


@dataclass(frozen=True, slots=True)
class Sources:
    """Documents, and the artifact they are stored in where there is one."""

    documents: Sequence[Document]
    stored: Path | None = None

    def open(
        self, reader: Reader, settings: Settings, screen: Screen, cached: Cached
    ) -> CompiledDocument | list[Document]:
        """What ``reader`` is to be asked about. Raises ArtifactError where it is another version by now."""
        if self.stored is not None:
            book = reader.load(self.stored)
            if list(book.documents) != list(self.documents):  # their text is shown, and read before the model
                raise ArtifactError(f"{self.stored} was replaced while the model was loaded. Ask again.")
            return book
        if not cached.wanted:
            return list(self.documents)
        from longctx.commands.cache import opened

        return opened(reader, self.documents, settings, cached.segment_kv, screen)


def find(paths: Sequence[str], settings: Settings) -> Sources:
    """Files, read; or one artifact, opened. Raises UsageError for a mixture and ArtifactError for a damaged one."""
    stored = [path for path in paths if is_stored(path)]
    if not stored:
        from longctx.documents.reader import read

        return Sources(read(list(paths), limits=settings.reading_limits()))
    if len(paths) > 1:
        raise UsageError(
            f"{stored[0]!r} is a compiled document, which is asked alone. Several documents go into one with "
            f"`longctx compile FILE... -o BOOK{SUFFIX}`, or `--add` to one that exists."
        )
    from longctx.store.artifact import open_artifact

    folder = Path(stored[0])
    return Sources([encoded.document for encoded in open_artifact(folder).encoded], folder)


def is_stored(path: str) -> bool:
    """Whether ``path`` means a compiled document rather than a file to read."""
    from longctx.store.manifest import FILE

    folder = Path(path)
    try:
        return folder.is_dir() and (folder.suffix == SUFFIX or (folder / FILE).exists())
    except (OSError, ValueError):  # no name that a folder can have
        return False
