"""The manifest: what is written comes back; whatever else it says, however it was changed, is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import artifacts
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.errors import ArtifactError
from longctx.store import manifest
from longctx.store.artifact import open_artifact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    artifacts.write(tmp_path / "book.lctx", "one\ntwo\nthree\n")
    return tmp_path / "book.lctx"


def resealed(folder: Path, change: Any) -> None:
    """The manifest with ``change`` made to its body and a digest that fits, as someone who means harm would."""
    whole = json.loads((folder / manifest.FILE).read_bytes())
    change(whole["body"])
    body = json.dumps(whole["body"], sort_keys=True, separators=(",", ":"))
    whole["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    (folder / manifest.FILE).write_text(json.dumps(whole))


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    made = artifacts.write(tmp_path / "book.lctx", "one\ntwo\n", "drei\nvier\nfünf\n")
    assert manifest.load(tmp_path / "book.lctx") == made
    assert json.loads(manifest.dump(made))["format"] == manifest.FORMAT


def test_a_name_may_hold_a_lone_surrogate(tmp_path: Path) -> None:
    folder = tmp_path / "book.lctx"
    artifacts.write(folder, "one\n")
    resealed(folder, lambda body: body["documents"][0].update(id="\ud800"))
    assert manifest.load(folder).documents[0].id == "\ud800"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_refused_or_says_the_same(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped.lctx"
    if not folder.exists():
        artifacts.write(folder, "one\ntwo\n")
        (folder / "whole").write_bytes((folder / manifest.FILE).read_bytes())
    whole = (folder / "whole").read_bytes()
    made = manifest._build(manifest.Manifest, json.loads(whole)["body"], "manifest")
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    changed = whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]
    (folder / manifest.FILE).write_bytes(changed)
    try:
        assert manifest.load(folder) == made
    except ArtifactError as error:
        assert str(folder) in str(error)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.pop("kv"),
        lambda body: body.update(extra=1),
        lambda body: body["origin"].update(segment_tokens="64"),
        lambda body: body["origin"].update(segment_tokens=True),
        lambda body: body["documents"][0]["file"].update(name="../../secret"),
        lambda body: body["documents"][0]["file"].update(size=-1),
        lambda body: body["documents"][0].update(pages=[[1, 0, 4]]),
        lambda body: body["segments"].append([1, 2, 3]),
        lambda body: body["kv"].update(residency="cloud"),
        lambda body: body["kv"].update(canary=[1]),
        lambda body: body["vectors"].update(blocks={}),
        lambda body: body.pop("summaries"),
        lambda body: body["summaries"]["segments"][0].update(key=7),
        lambda body: body.update(documents=None),
        lambda body: body.pop("copies"),
        lambda body: body["copies"][0].update(key=7),
        lambda body: body["copies"][0]["file"].update(name="../../secret"),
    ],
)
def test_a_manifest_that_fits_its_digest_and_says_what_cannot_be_is_refused(folder: Path, change: Any) -> None:
    resealed(folder, change)
    with pytest.raises(ArtifactError, match="manifest"):
        manifest.load(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 4}', "its format is 4 and this version of longctx reads 2 to 3. Update longctx, or compile"),
        ('{"format": 1}', "its format is 1 and this version of longctx reads 2 to 3. Compile"),
        ('{"format": 0}', "damaged"),
        ('{"format": true}', "damaged"),
        ('{"format": 2}', "damaged"),
        ('{"format": 3}', "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "damaged"),
        ("", "damaged"),
        ('{"format": 2, "sha256": "", "body": {"x": NaN}}', "damaged"),
        ('{"format": 3, "sha256": "", "body": {"x": NaN}}', "damaged"),
    ],
)
def test_other_formats_and_no_formats_are_refused(folder: Path, text: str, said: str) -> None:
    (folder / manifest.FILE).write_text(text)
    with pytest.raises(ArtifactError, match=said):
        manifest.load(folder)


def renumbered(folder: Path, number: int) -> None:
    whole = json.loads((folder / manifest.FILE).read_bytes())
    (folder / manifest.FILE).write_text(json.dumps({**whole, "format": number}))


def test_the_format_before_is_read_as_one_that_holds_no_copies(folder: Path) -> None:
    held = manifest.load(folder)
    renumbered(folder, 2)
    with pytest.raises(ArtifactError, match="damaged .format 2 holds no copies"):
        manifest.load(folder)
    resealed(folder, lambda body: body.pop("copies"))
    assert manifest.load(folder) == replace(held, copies=())
    renumbered(folder, 3)
    with pytest.raises(ArtifactError, match="damaged .manifest has not the fields"):
        manifest.load(folder)


def test_segments_and_their_keys_and_values_must_be_as_many(folder: Path) -> None:
    resealed(folder, lambda body: body["kv"]["segments"].pop())
    with pytest.raises(ArtifactError, match="keys and values of 1 segments and holds 2"):
        open_artifact(folder)
    resealed(folder, lambda body: body["segments"].pop())
    with pytest.raises(ArtifactError, match="segments hold 2 of its 3 units"):
        open_artifact(folder)


def test_what_is_no_artifact_is_told_apart(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no compiled document"):
        manifest.load(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="has no manifest.json"):
        manifest.load(tmp_path)
    (folder / manifest.FILE).rename(tmp_path / "elsewhere")
    (folder / manifest.FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="cannot be read"):
        manifest.load(folder)


def test_a_manifest_of_many_megabytes_is_refused_before_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_MOST_BYTES", 10_000)
    with open(folder / manifest.FILE, "ab") as file:
        file.write(b" " * 10_000)
    with pytest.raises(ArtifactError, match="more than 10,000 bytes"):
        manifest.load(folder)
