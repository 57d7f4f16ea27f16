"""Contexts in files: the old one or the new one, whole, whenever the process ends and however many write at once."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from longctx.errors import ArtifactBusy, ArtifactError, DoesNotFit, UsageError
from longctx.store import contexts, folders
from longctx.store.contexts import FILE

STEPS = ("replace", "fsync", "unlink", "mkdir", "rmdir", "open")  # calls of os that change the disk or precede it
OLD, NEW = "old", "new"


def layers(text: str) -> list[dict[str, torch.Tensor]]:
    """Three layers that only a context of ``text`` has, and one that all have."""
    seed = sum(map(ord, text))
    generator = torch.Generator().manual_seed(seed)
    own = [{"keys": torch.rand(2, 5, 4, generator=generator)} for _ in range(3)]
    return [*own, {"keys": torch.zeros(2, 5, 4), "stored": torch.arange(5)}]


def write(folder: Path, text: str, **options: Any) -> None:
    contexts.write(folder, {"text": text}, layers(text), **options)


def whole(folder: Path) -> str:
    """The text of the context, whose layers must be those it was written with."""
    facts, found = contexts.read(folder)
    expected = layers(facts["text"])
    assert [one.keys() for one in found] == [one.keys() for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    return str(facts["text"])


def kept(folder: Path) -> set[str]:
    """The names of what a folder must hold and nothing else."""
    named = json.loads((folder / FILE).read_bytes().partition(b"\n")[2])["files"]
    return {FILE, folders.LOCK, *(entry["name"] for entry in named)}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Killed(BaseException):
    """The process ends here."""


class Steps:
    """Counts the calls of os that change the disk; from the ``last`` on none is made, each raises ``error``."""

    def __init__(self, last: int, error: BaseException, once: bool = False) -> None:
        self.made, self.last, self.error, self.once = 0, last, error, once

    def __call__(self, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.made += 1
            if self.made == self.last or (self.made > self.last and not self.once):
                raise self.error
            return real(*args, **kwargs)

        return call

    def write(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
        """Whether writing the new context came to its end."""
        with monkeypatch.context() as patched:
            for name in STEPS:
                patched.setattr(os, name, self(getattr(os, name)))
            try:
                write(folder, NEW)
            except (Killed, OSError):
                return False
        return True


@pytest.mark.parametrize("before", [OLD, None])
def test_a_process_that_ends_at_any_step_leaves_the_old_context_or_the_new_one(
    tmp_path: Path, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    calls = Steps(0, Killed())
    while calls.made >= calls.last:
        folder, calls = tmp_path / str(len(found)), Steps(len(found) + 1, Killed())
        if before is not None:
            write(folder, before)
        assert calls.write(folder, monkeypatch) == (calls.made < calls.last)  # and nothing is tidied up behind it
        try:
            found.append(whole(folder))
        except ArtifactError:
            assert before is None and not (folder / FILE).exists()
            found.append("")
        write(folder, NEW)
        assert whole(folder) == NEW and names(folder) == kept(folder)
    switched = found.index(NEW)
    assert found == [before or ""] * switched + [NEW] * (len(found) - switched) and 12 < switched < len(found) - 1


@pytest.mark.parametrize("before", [OLD, None])
def test_an_error_at_any_step_leaves_the_old_context_or_the_new_one_and_nothing_half_written(
    tmp_path: Path, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    calls = Steps(0, Killed())
    while calls.made >= calls.last:
        error = OSError(errno.EIO, "Input/output error")
        folder, calls = tmp_path / str(len(found)), Steps(len(found) + 1, error, once=True)
        if before is not None:
            write(folder, before)
        ended = calls.write(folder, monkeypatch)
        found.append(whole(folder) if folder.exists() else "")
        assert found[-1] == NEW or (found[-1] == (before or "") and not ended)
        # what cannot be swept once the new one is there may stay
        assert found[-1] in ("", NEW) or names(folder) == kept(folder)
    assert found.count(before or "") > 12 and found[-1] == NEW


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("before", [OLD, None])
def test_a_full_disk_says_the_bytes_and_nothing_half_written_stays(
    tmp_path: Path, before: str | None, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(tensor.nbytes for one in layers(NEW) for tensor in one.values())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 5_000_000))  # type: ignore[attr-defined]
    for step in range(1, 7):  # of writing: four layers, of which three are new to an old context
        folder = tmp_path / str(step) / "deep" / "context"
        if before is not None:
            write(folder, before)
        calls = Steps(step, OSError(number, os.strerror(number)), once=True)
        with monkeypatch.context() as patched, pytest.raises(DoesNotFit) as caught:
            patched.setattr(os, "fsync", calls(os.fsync))
            write(folder, NEW)
        said = str(caught.value)
        assert str(folder) in said and os.strerror(number) in said and caught.value.exit_code == 3
        assert f"about {size:,} bytes" in said and "5,000,000 are free" in said and "Free some space" in said
        if before is None:
            assert not folder.exists()
        else:
            assert whole(folder) == OLD and names(folder) == kept(folder)


def test_two_writers_wait_for_one_another_and_one_that_waits_too_long_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "context"
    write(folder, OLD)
    with ThreadPoolExecutor(1) as pool:
        with folders.held(folder, contexts._KIND):
            with pytest.raises(ArtifactBusy, match="another process has been writing .* Try again"):
                pool.submit(write, folder, NEW, wait_seconds=0.1).result()
            assert whole(folder) == OLD
            waiting = pool.submit(write, folder, NEW)
        waiting.result()
    assert whole(folder) == NEW and names(folder) == kept(folder)


def test_a_writer_whose_folder_is_taken_away_while_it_waits_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that had the lock failed at a context that was not there before, so nothing of it stays."""
    folder, real, waits = tmp_path / "context", os.open, threading.Event()

    def opened(path: Any, *args: Any, **kwargs: Any) -> int:
        handle = real(path, *args, **kwargs)
        if Path(path).name == folders.LOCK and threading.current_thread() is not threading.main_thread():
            waits.set()
        return handle

    monkeypatch.setattr(os, "open", opened)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ZeroDivisionError), folders.held(folder, contexts._KIND):
            waiting = pool.submit(write, folder, NEW)
            assert waits.wait(60)
            raise ZeroDivisionError
        waiting.result()
    assert whole(folder) == NEW and names(folder) == kept(folder)


def test_three_writers_write_one_context_while_it_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "context"
    write(folder, "number 0")

    def several(writer: int) -> None:
        for number in range(8):
            write(folder, f"number {writer}{number}")

    seen = set()
    with ThreadPoolExecutor(3) as pool:
        writing = [pool.submit(several, writer) for writer in range(1, 4)]
        while not all(one.done() for one in writing):
            seen.add(whole(folder))
    assert [one.result() for one in writing] == [None] * 3 and len(seen) > 1
    whole(folder)
    assert names(folder) == kept(folder)


def test_layers_that_are_the_same_are_written_once_and_stay(tmp_path: Path) -> None:
    folder = tmp_path / "context"
    write(folder, OLD)
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    write(folder, NEW)
    after = {path.name: path.stat().st_ino for path in folder.iterdir()}
    shared = before.keys() & after.keys() - {FILE, folders.LOCK}
    assert len(shared) == 1 and all(before[name] == after[name] for name in shared)


def test_files_numbered_by_layer_are_read_and_replaced(tmp_path: Path) -> None:
    """As they were named at first."""
    folder = tmp_path / "context"
    write(folder, OLD)
    manifest = json.loads((folder / FILE).read_bytes().partition(b"\n")[2])
    for number, entry in enumerate(manifest["files"]):
        (folder / entry["name"]).rename(folder / f"layer-{number:04d}.safetensors")
        entry["name"] = f"layer-{number:04d}.safetensors"
    body = json.dumps(manifest, sort_keys=True).encode()
    (folder / FILE).write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    (folder / folders.LOCK).unlink()
    assert whole(folder) == OLD
    write(folder, NEW)
    assert whole(folder) == NEW and names(folder) == kept(folder)


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "context"
    write(folder, OLD)
    (folder / "notes.txt").write_text("mine")
    stale = folder / f"{FILE}.77.part"
    stale.write_text("half")
    write(folder, NEW)
    assert names(folder) == kept(folder) | {"notes.txt"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file; a compressed context is a folder"):
        write(tmp_path / "file", NEW)


def test_an_empty_folder_that_was_there_stays_where_nothing_comes_of_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, new = tmp_path / "made", tmp_path / "new"
    made.mkdir()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for folder in (made, new):
        with pytest.raises(DoesNotFit, match="No space left on device"):
            write(folder, NEW)
    assert list(made.iterdir()) == [] and not new.exists()
