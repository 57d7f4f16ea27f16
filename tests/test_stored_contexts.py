"""Compressed contexts on the disk: for their own model, checked, whole or not there."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
from contexts import SQUEEZED, compressed

import longctx
import longctx.kv
from longctx.errors import ArtifactError, DoesNotFit, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


def saved(tmp_path: Path, policy: str = SQUEEZED) -> tuple[Any, Path]:
    model = tiny.model("llama")
    compressed(model, policy).save(tmp_path / "context")
    return model, tmp_path / "context"


def test_a_stored_context_is_for_its_own_model(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    with pytest.raises(ArtifactError, match="another model"):
        longctx.kv.load(folder, tiny.model("llama", seed=1))
    with pytest.raises(ArtifactError, match="cannot be read"):
        longctx.kv.load(tmp_path / "nothing", tiny.model("llama"))


@pytest.mark.parametrize("name", ["context.json", "layer-*.safetensors"])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.999])
def test_a_flipped_bit_is_found(tmp_path: Path, name: str, where: float) -> None:
    model, folder = saved(tmp_path)
    path = next(folder.glob(name))
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError):
        longctx.kv.load(folder, model)


def test_files_that_are_missing_cut_or_elsewhere_are_found(tmp_path: Path) -> None:
    model, folder = saved(tmp_path)
    layer = next(folder.glob("layer-*.safetensors"))
    data = layer.read_bytes()
    layer.write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match="damaged"):
        longctx.kv.load(folder, model)
    layer.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        longctx.kv.load(folder, model)
    (tmp_path / "elsewhere").write_bytes(data)
    layer.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="cannot be read"):
        longctx.kv.load(folder, model)


def test_a_manifest_that_was_written_anew_is_still_checked(tmp_path: Path) -> None:
    """Someone who can write the checksums too still cannot name files outside or methods that are none."""
    import hashlib

    model, folder = saved(tmp_path)
    manifest = json.loads((folder / "context.json").read_bytes().partition(b"\n")[2])
    for change, said in (
        (lambda m: m["files"][0].update(name="../x"), "outside of its folder"),
        (lambda m: m["facts"]["policy"].update(name="os"), "no kv named 'os'"),
        (lambda m: m["facts"]["policy"].update(options={"nonsense": 1}), "nonsense"),
        (lambda m: m.update(version=2), "version 2"),
        (lambda m: m["facts"].update(token_ids=[5, 6]), "for 2 token ids"),
        (lambda m: m["facts"]["layers"][1].update(tokens=9), "of 9 tokens"),
        (lambda m: m["facts"]["layers"][0].update(window=8), "window of 8 tokens"),
    ):
        altered = json.loads(json.dumps(manifest))
        change(altered)
        body = json.dumps(altered, sort_keys=True).encode()
        (folder / "context.json").write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        with pytest.raises(ArtifactError, match=said):
            longctx.kv.load(folder, model)


@pytest.mark.parametrize(
    ("policy", "lacks"),
    [
        *((SQUEEZED, name) for name in ("means", "logs", "says", "centre")),
        (SQUEEZED + ",mode=paper", "threshold"),
        ("quest:budget=40", "least"),
        ("longheads:budget=60,window=16", "chunks"),
    ],
)
def test_a_context_without_what_its_policy_looks_at_is_refused_when_it_is_loaded(
    tmp_path: Path, policy: str, lacks: str
) -> None:
    model = tiny.model("llama")
    context = compressed(model, policy)
    for held in context._context.layers:
        del held.index.tensors[lacks]  # type: ignore[union-attr, attr-defined]
    context.save(tmp_path / "context")
    with pytest.raises(ArtifactError, match=f"{lacks}.*Compress it again"):
        longctx.kv.load(tmp_path / "context", model)


def test_a_full_disk_is_said_with_numbers_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = saved(tmp_path)
    held = compressed(model, "full")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for path in (folder, tmp_path / "another"):
        with pytest.raises(
            DoesNotFit, match=f"{path}.*No space left.* about {held.nbytes:,} bytes, and [0-9,]+ are free"
        ):
            held.save(path)
    assert [path.name for path in tmp_path.iterdir()] == ["context"]
    assert not longctx.kv.load(folder, model).policy.lossless


def test_an_older_context_is_replaced_and_other_folders_are_left_alone(tmp_path: Path) -> None:
    model, folder = saved(tmp_path)
    held = compressed(model, "full")
    held.save(folder)
    assert longctx.kv.load(folder, model).policy.lossless
    assert [path.name for path in tmp_path.iterdir()] == ["context"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").write_text("mine")
    with pytest.raises(UsageError, match="left alone"):
        held.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "text").read_text() == "mine"
