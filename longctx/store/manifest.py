"""The manifest of an artifact: what it holds, what it was made with, and a digest of its own words.

Owns the one file by which an artifact exists; replacing it publishes a new version. Knows files by name, length and
checksum, and no tensor. Strings may hold lone surrogates, as texts may, so the types are checked here and not by a
library that refuses them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from longctx.errors import ArtifactError, BadOption
from longctx.store import files
from longctx.store.files import Entry

FORMAT = 3
OLDEST = 2  # that is still read: it holds no suffix arrays
FILE = "manifest.json"
JOURNAL = "unfinished.jsonl"  # what was added for a version that is not published yet
_MOST_BYTES = 64 << 20

Place = Literal["ram", "disk"]
Residency = Literal["none", "summary", "ram", "disk"]
Form = Literal["exact", "int8"]
RESIDENCIES: tuple[Residency, ...] = ("none", "summary", "ram", "disk")
SEGMENT_KV = ("auto", *RESIDENCIES)
FORMS: tuple[Form, ...] = ("exact", "int8")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a compiled document was made with. ``model``, ``tokenizer`` and ``template`` are fingerprints.

    ``frame`` is the fingerprint of the prompt's fixed parts, behind which segments are read.
    """

    name: str
    dtype: str
    model: str
    tokenizer: str
    template: str
    frame: str
    splitter: str
    segment_tokens: int
    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoredPage:
    number: int
    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """One document: its text, tokens and units are in ``file``."""

    id: str
    kind: str
    language: str
    warnings: tuple[str, ...]
    pages: tuple[StoredPage, ...]
    characters: int
    tokens: int
    units: int
    file: Entry


@dataclass(frozen=True, slots=True)
class Vectors:
    """Embeddings of all units in order, in blocks, made by the encoder of that fingerprint."""

    encoder: str
    dimension: int
    blocks: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """Keys and values of one segment, or its summary. ``key`` is a hash of all they were computed from."""

    key: str
    file: Entry


@dataclass(frozen=True, slots=True)
class SegmentKV:
    """Keys and values of every segment in order; ``canary`` is what the model said when they were computed."""

    residency: Place
    form: Form
    canary: tuple[float, ...]
    segments: tuple[StoredSegment, ...]


@dataclass(frozen=True, slots=True)
class Summaries:
    """What stands for every segment in order; ``canary`` is what the model said when they were computed."""

    canary: tuple[float, ...]
    segments: tuple[StoredSegment, ...]


@dataclass(frozen=True, slots=True)
class StoredOrder:
    """A suffix array of the tokens of all documents, as they are or folded. ``key`` is a hash of those tokens."""

    key: str
    file: Entry


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything an artifact says of itself. ``segments`` are half-open ranges of units."""

    origin: Origin
    documents: tuple[StoredDocument, ...]
    segments: tuple[tuple[int, int], ...]
    warnings: tuple[str, ...]
    vectors: Vectors | None
    kv: SegmentKV | None
    summaries: Summaries | None
    copies: tuple[StoredOrder, ...]

    def entries(self) -> tuple[Entry, ...]:
        """Every file that belongs to the artifact."""
        found = [document.file for document in self.documents]
        found += self.vectors.blocks if self.vectors is not None else ()
        found += [segment.file for segment in self.kv.segments] if self.kv is not None else []
        found += [segment.file for segment in self.summaries.segments] if self.summaries is not None else []
        found += [order.file for order in self.copies]
        return tuple(dict.fromkeys(found))


def check_words(segment_kv: str, segment_form: str) -> None:
    """Raises BadOption for a place or a form of segments that there is not."""
    if segment_kv not in SEGMENT_KV or segment_form not in FORMS:
        raise BadOption(
            f"segment_kv={segment_kv!r} must be one of {', '.join(SEGMENT_KV)} and "
            f"segment_form={segment_form!r} one of {', '.join(FORMS)}."
        )


def dump(manifest: Manifest) -> bytes:
    """The bytes of the manifest's file."""
    body = dataclasses.asdict(manifest)
    return json.dumps({"format": FORMAT, "sha256": _digest(body), "body": body}, indent=1).encode("ascii")


def load(folder: Path) -> Manifest:
    """The manifest of the artifact in ``folder``. Raises ArtifactError for anything that is none."""
    data = _read(folder)
    try:
        whole = json.loads(data)
        number = whole["format"]
        if type(number) is not int or number < 1:
            raise ValueError(f"format {number!r:.40}")
        if not OLDEST <= number <= FORMAT:
            do = "Update longctx, or compile" if number > FORMAT else "Compile"
            raise ArtifactError(
                f"{folder}: its format is {number} and this version of longctx reads {OLDEST} to {FORMAT}. {do} the "
                f"documents again."
            )
        body = whole["body"]
        if whole["sha256"] != _digest(body):
            raise ValueError("its digest is not that of its content")
        manifest: Manifest = _build(Manifest, _current(number, body), "manifest")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(
            f"{folder / FILE} is damaged ({error or type(error).__name__}). Compile the documents again."
        ) from error
    return manifest


def _current(number: int, body: Any) -> Any:
    """``body`` as this format has it: what an older one does not hold is empty. Raises ValueError where it holds it."""
    if number == FORMAT:
        return body
    if "copies" in body:
        raise ValueError(f"format {number} holds no copies")
    return {**body, "copies": []}


def publish(folder: Path, manifest: Manifest) -> None:
    """The artifact is ``manifest`` from one moment to the next; all of its files must be there."""
    for entry in manifest.entries():
        if not files.holds(folder, entry):
            raise ArtifactError(f"{folder / entry.name} vanished while the artifact was written. Save it again.")
    files.replace(folder / FILE, dump(manifest))


def _read(folder: Path) -> bytes:
    path = folder / FILE
    try:
        with files.regular(path) as file:
            data = file.read(_MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not folder.exists():
            raise ArtifactError(f"there is no compiled document {str(folder)!r}.") from error
        raise ArtifactError(f"{folder} is no compiled document: it has no {FILE}.{_unfinished(folder)}") from error
    except files.NotRegular as error:
        raise ArtifactError(f"{path} cannot be read: {error}.") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror or error}).") from error
    if len(data) > _MOST_BYTES:
        raise ArtifactError(f"{path} has more than {_MOST_BYTES:,} bytes, which no manifest has.")
    return data


def _unfinished(folder: Path) -> str:
    if not (folder / JOURNAL).exists():
        return ""
    return " Compiling was interrupted: the same command goes on where it ended."


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


@cache
def _fields(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _build(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated type ``kind``, built of JSON's own types. Raises ValueError naming the place."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = _fields(kind)  # type: ignore[arg-type]
        if not isinstance(value, dict) or value.keys() != hints.keys():
            raise ValueError(f"{where} has not the fields {', '.join(hints)}")
        return typing.cast(Any, kind)(
            **{name: _build(hint, value[name], f"{where}.{name}") for name, hint in hints.items()}
        )
    if origin is types.UnionType:
        return None if value is None else _build(arguments[0], value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} is {value!r:.40}, not one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list) or (arguments[1:] != (...,) and len(value) != len(arguments)):
            raise ValueError(f"{where} is not a list of the right length")
        return tuple(_build(arguments[0], item, f"{where}[{at}]") for at, item in enumerate(value))
    if type(value) is not kind or (kind is float and not abs(value) < float("inf")):
        raise ValueError(f"{where} is {value!r:.40}, which is no {kind.__name__}")
    return value
