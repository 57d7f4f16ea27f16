"""A compressed context as a folder of checked files: one of tensors a layer, and a manifest that names them.

Owns the format. A folder is replaced whole or not at all; nothing in it is ever unpickled. Knows no model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as unpack
from safetensors.torch import save as pack
from torch import Tensor

from longctx.errors import ArtifactError, UsageError, naming

_MANIFEST = "context.json"
_FORMAT, _VERSION = "longctx-context", 3
_MOST_MANIFEST = 64 * 2**20  # bytes
_Tensors = Mapping[str, Tensor]


def write(folder: Path, facts: Mapping[str, Any], layers: Sequence[_Tensors]) -> None:
    """Afterwards ``folder`` holds ``facts`` and ``layers``, or what it held before.

    Raises UsageError for a place that holds something else.
    """
    if folder.exists() and not (folder / _MANIFEST).is_file():
        raise UsageError(f"{str(folder)!r} is no compressed context, and is left alone. Name another place.")
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        files = []
        for number, tensors in enumerate(layers):
            data = pack({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
            name = f"layer-{number:04d}.safetensors"
            _put(part / name, data)
            files.append({"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        manifest = {"format": _FORMAT, "version": _VERSION, "facts": facts, "files": files}
        body = json.dumps(manifest, sort_keys=True).encode()
        _put(part / _MANIFEST, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        _replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """The facts and the layers' tensors. Raises ArtifactError for what is missing, damaged or of another format."""
    data = _get(folder / _MANIFEST, _MOST_MANIFEST)
    digest, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ArtifactError(f"{folder / _MANIFEST} is damaged: its checksum is not that of its content.")
    try:
        manifest = json.loads(body)
        found, version = manifest["format"], manifest["version"]
        facts, files = dict(manifest["facts"]), list(manifest["files"])
        named = [(str(file["name"]), int(file["size"]), str(file["sha256"])) for file in files]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{folder / _MANIFEST} is no manifest of a compressed context ({error}).") from error
    if (found, version) != (_FORMAT, _VERSION):
        raise ArtifactError(
            f"{folder} is {found!r} of version {version}, and {_FORMAT!r} {_VERSION} is what is read: compress its "
            "text again and save it anew."
        )
    return facts, [_layer(folder, *entry) for entry in named]


def _layer(folder: Path, name: str, size: int, sha256: str) -> dict[str, Tensor]:
    if Path(name).name != name:
        raise ArtifactError(f"{folder / _MANIFEST} names a file outside of its folder: {name!r:.80}.")
    data = _get(folder / name, size)
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(f"{folder / name} is damaged: it is not what was written. Compress the context again.")
    try:
        return unpack(data)
    except SafetensorError as error:
        raise ArtifactError(f"{folder / name} holds no tensors ({error}).") from error


def _get(path: Path, most: int) -> bytes:
    """At most one byte more than ``most`` of a file; links are not followed."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror or error}).") from error


def _put(path: Path, data: bytes) -> None:
    with naming(path), open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _replace(part: Path, folder: Path) -> None:
    """``part`` takes the place of ``folder``, whose old content is gone then."""
    old = folder.with_name(f"{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(part, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
