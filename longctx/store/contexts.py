"""A compressed context as a folder of checked files: one of tensors a layer, and a manifest that names them.

Owns the format. Files are written beside those of an older context, and the manifest makes them the context from one
moment to the next; nothing in them is ever unpickled. Knows no model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as unpack
from safetensors.torch import save as pack
from torch import Tensor

from longctx.errors import ArtifactError, UsageError
from longctx.store import files, folders

FILE = "context.json"
_KIND = folders.Kind("a compressed context", FILE, ("layer-",), names=re.compile(r"layer-\d{4}\.safetensors"))
_FORMAT, _VERSION = "longctx-context", 3
_MOST_MANIFEST = 64 * 2**20  # bytes
_TRIES = 5
_MADE = "made_with"  # a fact of every context: the releases that made it
_Tensors = Mapping[str, Tensor]


def write(
    folder: Path,
    facts: Mapping[str, Any],
    layers: Sequence[_Tensors],
    wait_seconds: float = folders.WAIT_SECONDS,
) -> None:
    """Afterwards ``folder`` holds ``facts`` and ``layers``, or what it held before, whenever the process ends.

    Raises UsageError for a place that holds something else, ArtifactBusy while another process writes there and
    DoesNotFit for a full disk.
    """
    size = sum(tensor.nbytes for tensors in layers for tensor in tensors.values())
    with folders.fitting(folder, lambda: size):
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with folders.held(folder, _KIND, wait_seconds):
            _replace(folder, facts, layers)


def releases(facts: Mapping[str, Any]) -> str:
    """What may be why a model is not known again: with which releases a context was made, where they are not these."""
    made = facts.get(_MADE)
    return "" if made == _here() else f"It was made with {made}, and here is {_here()}."


def _here() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))


def _replace(folder: Path, facts: Mapping[str, Any], layers: Sequence[_Tensors]) -> None:
    """The same inside the lock. What was added and is no part of a context is taken back."""
    added: list[files.Entry] = []
    try:
        entries = []
        for tensors in layers:
            data = pack({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
            entry, new = files.write(folder, "layer", data)
            entries.append(entry)
            added += [entry] if new else []
        named = [dataclasses.asdict(entry) for entry in entries]
        whole = {"format": _FORMAT, "version": _VERSION, "facts": {**facts, _MADE: _here()}, "files": named}
        body = json.dumps(whole, sort_keys=True)
        manifest = _digest(body.encode()) + b"\n" + body.encode()
        if len(manifest) > _MOST_MANIFEST:
            raise UsageError(
                f"the context's manifest takes {len(manifest):,} bytes, and {_MOST_MANIFEST:,} are read at most: a "
                "text of so many tokens has no form on the disk."
            )
        files.replace(folder / FILE, manifest)
        added.clear()
    finally:
        if added:  # the last step may have failed after the manifest was in its place
            folders.take_back(folder, added, _named(folder))
    folders.sweep(folder, _KIND, {entry.name for entry in entries})


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """The facts and the layers' tensors. Raises ArtifactError for what is missing, damaged or of another format."""
    before, gone = b"", FileNotFoundError()
    for _ in range(_TRIES):
        try:
            data = _get(folder / FILE, _MOST_MANIFEST)
            if data == before:  # nobody replaced the context: a file of it is missing
                break
            before = data
            facts, named = _manifest(folder, data)
            return facts, [_layer(folder, *entry) for entry in named]
        except FileNotFoundError as error:
            gone = error
    what = gone.filename or folder / FILE  # read twice alike, no file was missing: it names none
    raise ArtifactError(f"{what} cannot be read ({gone.strerror or 'nothing is in it'}). Compress again.") from gone


def _manifest(folder: Path, data: bytes) -> tuple[dict[str, Any], list[tuple[str, int, str]]]:
    """The facts of a context, and name, length and checksum of its files."""
    digest, _, body = data.partition(b"\n")
    if _digest(body) != digest:
        raise ArtifactError(f"{folder / FILE} is damaged: its checksum is not that of its content.")
    try:
        manifest = json.loads(body)
        found, version = manifest["format"], manifest["version"]
        facts, listed = dict(manifest["facts"]), list(manifest["files"])
        named = [(str(file["name"]), int(file["size"]), str(file["sha256"])) for file in listed]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{folder / FILE} is no manifest of a compressed context ({error}).") from error
    if (found, version) != (_FORMAT, _VERSION):
        raise ArtifactError(
            f"{folder} is {found!r} of version {version}, and {_FORMAT!r} {_VERSION} is what is read: compress its "
            "text again and save it anew."
        )
    return facts, named


def _layer(folder: Path, name: str, size: int, sha256: str) -> dict[str, Tensor]:
    if Path(name).name != name:
        raise ArtifactError(f"{folder / FILE} names a file outside of its folder: {name!r:.80}.")
    data = _get(folder / name, size)
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(f"{folder / name} is damaged: it is not what was written. Compress the context again.")
    try:
        return unpack(data)
    except SafetensorError as error:
        raise ArtifactError(f"{folder / name} holds no tensors ({error}).") from error


def _get(path: Path, most: int) -> bytes:
    """At most one byte more than ``most`` of a file. Raises FileNotFoundError, and ArtifactError for all else."""
    try:
        with files.regular(path) as file:
            return file.read(most + 1)
    except FileNotFoundError:
        raise
    except files.NotRegular as error:
        raise ArtifactError(f"{path} cannot be read: {error}.") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror or error}).") from error


def _named(folder: Path) -> set[str]:
    """The files of the context that is in ``folder`` now; none where there is none."""
    try:
        return {name for name, _, _ in _manifest(folder, _get(folder / FILE, _MOST_MANIFEST))[1]}
    except (FileNotFoundError, ArtifactError):
        return set()


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
