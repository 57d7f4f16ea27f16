"""Single files: whole or not there, named by their content, refused and set aside when they were changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from longctx.errors import ArtifactError
from longctx.store import files
from longctx.store.files import Entry

DATA = bytes(range(256)) * 40


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    entry, new = files.write(tmp_path, "document", DATA)
    assert new
    return entry


def test_the_same_content_is_written_once(tmp_path: Path, entry: Entry) -> None:
    before = (tmp_path / entry.name).stat().st_ino
    again, new = files.write(tmp_path, "document", DATA)
    assert (again, new, (tmp_path / entry.name).stat().st_ino) == (entry, False, before)
    assert files.read(tmp_path, entry) == DATA and [path.name for path in tmp_path.iterdir()] == [entry.name]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:100] + bytes([data[100] ^ 4]) + data[101:], "SHA-256"),
        (lambda data: data[:-1], "10,239 bytes and was written with 10,240"),
        (lambda data: data + b"x", "10,241 bytes"),
        (lambda data: b"", "0 bytes"),
    ],
)
def test_a_changed_file_is_refused_and_set_aside_and_writing_mends_it(
    tmp_path: Path, entry: Entry, change: Any, said: str
) -> None:
    path = tmp_path / entry.name
    path.write_bytes(change(DATA))
    with pytest.raises(ArtifactError, match=f"{entry.name} is damaged.*{said}.*set aside as {entry.name}.damaged"):
        files.read(tmp_path, entry)
    assert not path.exists() and (tmp_path / f"{entry.name}.damaged").exists()
    assert files.read(tmp_path, entry) is None
    assert files.write(tmp_path, "document", DATA) == (entry, True) and files.read(tmp_path, entry) == DATA


def test_writing_over_a_damaged_file_of_the_same_length_mends_it(tmp_path: Path, entry: Entry) -> None:
    (tmp_path / entry.name).write_bytes(DATA[::-1])
    assert files.write(tmp_path, "document", DATA) == (entry, True) and files.read(tmp_path, entry) == DATA


def elsewhere(path: Path) -> None:
    (path.parent / "elsewhere").write_bytes(DATA)
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, elsewhere])
def test_links_pipes_and_folders_are_not_followed_read_or_waited_for(tmp_path: Path, entry: Entry, make: Any) -> None:
    path = tmp_path / entry.name
    path.unlink()
    make(path)
    assert not files.holds(tmp_path, entry)
    with pytest.raises(ArtifactError, match="damaged: it is (a link to another place|no regular file)"):
        files.read(tmp_path, entry)
    assert not path.is_symlink() and not path.exists()
    assert files.write(tmp_path, "document", DATA) == (entry, True)


def test_without_checking_only_the_length_is_held_against_the_entry(tmp_path: Path, entry: Entry) -> None:
    (tmp_path / entry.name).write_bytes(DATA[::-1])
    assert files.read(tmp_path, entry, check=False) == DATA[::-1]
    (tmp_path / entry.name).write_bytes(DATA[1:])
    with pytest.raises(ArtifactError):
        files.read(tmp_path, entry, check=False)


@pytest.mark.parametrize("name", ["../document-" + "0" * 32 + ".safetensors", "x", "document-0.safetensors", "a/b"])
def test_no_entry_names_a_file_elsewhere(name: str) -> None:
    with pytest.raises(ValueError, match="no stored file"):
        Entry(name, 5, "0" * 64)


def test_an_entrys_name_and_checksum_belong_together(entry: Entry) -> None:
    with pytest.raises(ValueError, match="no stored file"):
        Entry(entry.name, entry.size, "0" * 64)


def test_a_file_that_cannot_be_written_whole_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        files.write(tmp_path, "document", DATA)
    assert str(caught.value.filename).startswith(str(tmp_path / "document-")), "a full disk names no file by itself"
    assert list(tmp_path.iterdir()) == []
