"""A damaged file is refused when it is first used, whatever it holds, and never answers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from safetensors.torch import load_file, save
from stored_books import DOCUMENT, QUESTION, found, reader_of

from longctx import Document, Reader
from longctx.compiled import CompiledDocument
from longctx.errors import ArtifactError, DoesNotFit
from longctx.store import manifest, texts
from longctx.store.artifact import open_artifact

pytestmark = pytest.mark.usefixtures("one_thread")


USES = {"document": "auto", "vectors": "dense", "segment": "xl3m", "summary": "longheads"}  # what needs such a file


def copied(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "copy.lctx"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["document", "vectors", "segment", "summary"])
def test_a_damaged_file_is_refused_when_it_is_first_used_and_never_answers(
    stored: Path, tmp_path: Path, book: CompiledDocument, kind: str
) -> None:
    folder = copied(stored, tmp_path)
    path = sorted(folder.glob(f"{kind}-*"))[0]
    flip(path, path.stat().st_size - 3)
    reader = reader_of()
    with pytest.raises(ArtifactError, match=f"{path.name} is damaged.*SHA-256"):
        loaded = reader.load(folder)
        assert kind != "document" and found(reader.select(loaded, QUESTION, budget_tokens=150, selector="bm25"))
        reader.select(loaded, QUESTION, budget_tokens=150, selector=USES[kind])
    assert not path.exists() and path.with_name(f"{path.name}.damaged").exists()
    if kind == "document":
        with pytest.raises(ArtifactError, match=f"{path.name} is missing"):
            reader_of().load(folder)
    else:  # what can be worked out again is, and the result says so
        reader = reader_of()
        one, other = (
            reader.select(b, QUESTION, budget_tokens=150, selector=USES[kind]) for b in (reader.load(folder), book)
        )
        assert found(one) == found(other)
        assert any(f"{path.name} is gone" in warning for warning in one.warnings)
    mended = reader_of().compile(DOCUMENT, path=folder, segment_kv="disk")
    assert mended.saved is not None and mended.saved.written_bytes == path.with_name(path.name).stat().st_size
    assert reader_of().load(folder, verify="full").documents == book.documents


def test_a_file_that_is_changed_between_two_questions_is_refused_by_the_second(stored: Path, tmp_path: Path) -> None:
    folder = copied(stored, tmp_path)
    reader = reader_of()
    loaded = reader.load(folder)
    assert reader.select(loaded, QUESTION, budget_tokens=150, selector="xl3m").tokens_read
    path = sorted(folder.glob("segment-*"))[0]
    with open(path, "r+b") as file:  # the same file, of the same length
        file.seek(-3, os.SEEK_END)
        file.write(b"\x7f\x7f\x7f")
    with pytest.raises(ArtifactError, match=f"{path.name} is damaged.*SHA-256"):
        reader.select(loaded, "Who keeps the lamp?", budget_tokens=150, selector="xl3m")
    assert path.with_name(f"{path.name}.damaged").exists()


def test_full_checks_everything_at_once(stored: Path, tmp_path: Path) -> None:
    folder = copied(stored, tmp_path)
    path = sorted(folder.glob("segment-*"))[-1]
    flip(path, 2000)
    with pytest.raises(ArtifactError, match=path.name):
        reader_of().load(folder, verify="full")


def sealed(folder: Path, data: bytes, of: str) -> None:
    """The first file of a kind holds ``data``, and the manifest says so: everything fits but the content."""
    whole = json.loads((folder / manifest.FILE).read_bytes())
    body = whole["body"]
    places = {
        "document": body["documents"][0],
        "vectors": body["vectors"]["blocks"],
        "segment": body["kv"]["segments"][0],
        "summary": body["summaries"]["segments"][0],
    }
    digest = hashlib.sha256(data).hexdigest()
    entry = {"name": f"{of}-{digest[:32]}.safetensors", "size": len(data), "sha256": digest}
    if of == "vectors":
        places[of][0] = entry
    else:
        places[of]["file"] = entry
    (folder / entry["name"]).write_bytes(data)  # type: ignore[arg-type, operator]
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    (folder / manifest.FILE).write_text(
        json.dumps({"format": manifest.FORMAT, "sha256": hashlib.sha256(text.encode()).hexdigest(), "body": body})
    )


def header(text: str, size: int | None = None, rest: bytes = b"") -> bytes:
    return (len(text) if size is None else size).to_bytes(8, "little") + text.encode() + rest


BOMBS = {
    "empty header": header(""),
    "header of 100 MB": header("{}", 100_000_000, b" " * 100),
    "header beyond all memory": header("{}", 2**63),
    "no JSON": header("{" * 1000),
    "shape beyond all memory": header(
        '{"text": {"dtype": "U8", "shape": [4611686018427387904, 4], "data_offsets": [0, 8]}}', rest=b"x" * 8
    ),
    "unknown dtype": header('{"text": {"dtype": "Q9", "shape": [8], "data_offsets": [0, 8]}}', rest=b"x" * 8),
    "overlap": header(
        '{"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}, '
        '"b": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}',
        rest=b"x" * 8,
    ),
    "other tensors": header('{"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}', rest=b"x" * 8),
    "short": b"\x02",
}


@pytest.mark.parametrize("kind", ["document", "vectors", "segment", "summary"])
@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("verify", ["lazy", "off"])
def test_a_file_that_fits_its_checksum_and_holds_something_else_is_refused(
    stored: Path, tmp_path: Path, kind: str, bomb: str, verify: Any
) -> None:
    folder = copied(stored, tmp_path)
    sealed(folder, BOMBS[bomb], kind)
    reader = reader_of()
    with pytest.raises(ArtifactError, match=f"{kind}-[0-9a-f]+.safetensors is damaged"):
        reader.select(reader.load(folder, verify=verify), QUESTION, budget_tokens=150, selector=USES[kind])


def test_a_summary_of_keys_of_another_width_is_refused(stored: Path, tmp_path: Path) -> None:
    folder = copied(stored, tmp_path)
    held = open_artifact(folder).manifest.summaries
    assert held is not None
    parts = load_file(folder / held.segments[0].file.name)
    sealed(folder, save({name: part[..., :-2].contiguous() for name, part in parts.items()}), "summary")
    reader = reader_of()
    with pytest.raises(ArtifactError, match=r"summary-[0-9a-f]+.safetensors is damaged: its keys have"):
        reader.select(reader.load(folder), QUESTION, budget_tokens=150, selector=USES["summary"])


def test_swapped_and_exchanged_files_are_refused(stored: Path, tmp_path: Path) -> None:
    folder = copied(stored, tmp_path)
    one, other = sorted(folder.glob("segment-*"))[:2]
    one.rename(tmp_path / "kept")
    other.rename(one)
    (tmp_path / "kept").rename(other)
    reader = reader_of()
    with pytest.raises(ArtifactError, match="damaged"):
        reader.select(reader.load(folder), QUESTION, budget_tokens=150, selector="xl3m")
    assert len(list(folder.glob("*.damaged"))) == 1


def test_a_segment_of_another_text_is_refused_even_where_nothing_is_checked(stored: Path, tmp_path: Path) -> None:
    folder = copied(stored, tmp_path)
    shorter = min(folder.glob("segment-*"), key=lambda path: path.stat().st_size)
    kept = manifest.load(folder).kv
    assert kept is not None
    first = kept.segments[0].file
    assert shorter.stat().st_size != first.size
    sealed(folder, shorter.read_bytes(), "segment")
    reader = reader_of()
    with pytest.raises(ArtifactError, match=r"k0 is torch.float32 .* and not torch.float32"):
        reader.select(reader.load(folder, verify="off"), QUESTION, budget_tokens=150, selector="xl3m")


def test_a_token_that_the_model_does_not_know_is_refused(stored: Path, tmp_path: Path, reader: Reader) -> None:
    folder = copied(stored, tmp_path)
    artifact = open_artifact(folder)
    artifact.encoded[0].token_ids[5] = tiny.VOCAB
    sealed(folder, texts.pack(artifact.encoded[0], artifact.units), "document")
    with pytest.raises(ArtifactError, match=f"token {tiny.VOCAB}, and the model knows {tiny.VOCAB}"):
        reader.load(folder)


def test_segments_that_leave_no_room_for_the_question_are_refused(tmp_path: Path) -> None:
    model = tiny.model(num_hidden_layers=1, max_position_embeddings=400)
    text = Document.from_text(" ".join(["a street by the river in winter"] * 200))
    options: dict[str, Any] = {"splitter": "fixed:tokens=340"}
    book = reader_of(model, segment_tokens=340, **options).compile(text, path=tmp_path / "book.lctx", segment_kv="none")
    assert book.longest_segment == 340
    reader = reader_of(model)
    with pytest.raises(DoesNotFit, match=r"segments of up to 340 tokens.*window of 400.*segment_tokens=\d+ or less"):
        reader.select(reader.load(tmp_path / "book.lctx"), QUESTION * 2, budget_tokens=50)
