"""Where copies stand is stored with a document: found again and not sorted again, refused where it is damaged."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import longctx
from longctx import Document, suffixes
from longctx.backend.folding import folds
from longctx.compiled import CompiledDocument
from longctx.errors import ArtifactError
from longctx.store import copies, manifest
from longctx.suffixes import SuffixIndex, fold

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = tiny.tokenizer()
ONE, TWO = Document.from_text("the of and The OF with " * 30, id="a"), Document.from_text("with on the " * 30, id="b")


def reader() -> longctx.Reader:
    return longctx.Reader(tiny.model(num_hidden_layers=1), TOKENIZER, encoder=None, calibration=None)


@pytest.fixture
def sorted_texts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the texts whose suffixes were sorted."""
    made: list[int] = []
    sort = suffixes._suffix_array
    monkeypatch.setattr(suffixes, "_suffix_array", lambda *given: (made.append(len(given[0])), sort(*given))[1])
    return made


def both(book: CompiledDocument) -> list[SuffixIndex]:
    words = folds(TOKENIZER)
    assert words is not None
    return [book.copies, book.copies.folded(words)]


def fresh(book: CompiledDocument) -> list[list[int]]:
    """What sorting makes of the tokens, as they are and folded."""
    words = folds(TOKENIZER)
    tokens = np.concatenate([encoded.token_ids for encoded in book.encoded])
    assert words is not None
    return [SuffixIndex(text).order.tolist() for text in (tokens, fold(words, tokens))]


def held(path: Path) -> list[Path]:
    return sorted(path.glob("copies-*"))


def test_a_later_process_drafts_from_a_stored_document_without_sorting_it(
    tmp_path: Path, sorted_texts: list[int]
) -> None:
    made = reader().compile([ONE, TWO], path=tmp_path / "book.lctx", segment_kv="none")
    assert sorted_texts == [made.tokens] * 2, "as it is, and with folded words"
    sorted_texts.clear()
    other = reader()
    book = other.load(tmp_path / "book.lctx")
    prompt = TOKENIZER("with on", return_tensors="pt")["input_ids"]
    options: dict[str, Any] = {"drafters": ["document"], "controller": "fixed:nodes=8", "max_new_tokens": 12}
    found = longctx.generate(other.model, TOKENIZER, prompt, document=book, **options)
    orders = [index.order.tolist() for index in both(book)]
    assert found.stats.drafted > 0 and sorted_texts == []
    if sys.platform == "linux":
        maps = Path("/proc/self/maps").read_text()
        assert all(path.name in maps for path in held(tmp_path / "book.lctx"))
    assert orders == fresh(made) and len(set(map(tuple, orders))) == 2
    listed = longctx.generate(other.model, TOKENIZER, prompt, document=[ONE, TWO], **options)
    assert found.sequences.tolist() == listed.sequences.tolist() and found.stats.drafted == listed.stats.drafted


def test_a_document_that_is_added_makes_the_arrays_anew_and_the_same_text_does_not(
    tmp_path: Path, sorted_texts: list[int]
) -> None:
    path = tmp_path / "book.lctx"
    reader().compile(ONE, path=path, segment_kv="none")
    before = held(path)
    sorted_texts.clear()
    again = reader().compile(ONE, path=path, segment_kv="none")
    assert sorted_texts == [] and held(path) == before
    assert again.saved is not None and again.saved.written_bytes == 0
    longer = reader().compile([ONE, TWO], path=path, segment_kv="none")
    assert sorted_texts == [longer.tokens] * 2
    assert len(held(path)) == 2 and not set(held(path)) & set(before)
    assert [index.order.tolist() for index in both(longer)] == fresh(longer)


def test_another_tokenizer_s_folding_is_sorted_and_the_tokens_themselves_are_not(
    tmp_path: Path, sorted_texts: list[int]
) -> None:
    reader().compile(ONE, path=tmp_path / "book.lctx", segment_kv="none")
    book = reader().load(tmp_path / "book.lctx")
    sorted_texts.clear()
    words = np.zeros(tiny.VOCAB, dtype=np.int32)
    found = book.copies.folded(words).order.tolist()
    assert sorted_texts == [book.tokens]
    assert found == SuffixIndex(fold(words, book.copies.tokens)).order.tolist()
    assert book.copies.order.tolist() == fresh(book)[0]


def test_a_document_of_the_format_before_is_sorted_when_it_is_drafted_from_and_stored_when_it_is_saved(
    tmp_path: Path, sorted_texts: list[int]
) -> None:
    path = tmp_path / "book.lctx"
    reader().compile(ONE, path=path, segment_kv="disk")
    whole = json.loads((path / manifest.FILE).read_bytes())
    del whole["body"]["copies"]
    (path / manifest.FILE).write_bytes(json.dumps({**whole, "format": 2, "sha256": digest(whole["body"])}).encode())
    for file in held(path):
        file.unlink()
    sorted_texts.clear()
    book = reader().load(path, verify="full")
    assert sorted_texts == [] and book.take_warnings() == ()
    assert [index.order.tolist() for index in both(book)] == fresh(book)
    sorted_texts.clear()
    saved = reader().load(path).save(path, segment_kv="disk")
    assert len(sorted_texts) == 2 and saved.tokens_read == 0 and manifest.load(path).copies
    assert saved.written_bytes == sum(file.stat().st_size for file in held(path))


def digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_an_array_that_is_damaged_is_refused_and_one_that_is_gone_is_sorted_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "book.lctx"
    reader().compile(ONE, path=path, segment_kv="none")
    first = next(path / order.file.name for order in manifest.load(path).copies)
    data = bytearray(first.read_bytes())
    data[-3] ^= 1
    first.write_bytes(data)
    book = reader().load(path)
    with pytest.raises(ArtifactError, match=f"{first.name} is damaged.*SHA-256"):
        both(book)[0].matches([5], 1)
    assert not first.exists() and first.with_name(f"{first.name}.damaged").exists()
    assert both(book)[0].order.tolist() == fresh(book)[0]
    assert any(f"{first.name} is gone" in warning for warning in book.take_warnings())
    mended = reader().compile(ONE, path=path, segment_kv="none")
    assert mended.saved is not None and mended.saved.written_bytes == first.stat().st_size


WRONG: dict[str, Callable[[Any], Any]] = {
    "short": lambda order: order[:-1],
    "below": lambda order: np.where(order == 0, -1, order),
    "beyond": lambda order: np.where(order == 0, len(order), order),
    "twice": lambda order: np.where(order == 0, 1, order),
    "wide": lambda order: order.astype(np.int64),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("verify", ["lazy", "off"])
def test_an_array_that_fits_its_checksum_and_holds_something_else_is_refused(
    tmp_path: Path, wrong: str, verify: Any
) -> None:
    path = tmp_path / "book.lctx"
    made = reader().compile(ONE, path=path, segment_kv="none")
    data = copies.pack(WRONG[wrong](both(made)[0].order))
    name = f"copies-{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
    (path / name).write_bytes(data)
    body = json.loads((path / manifest.FILE).read_bytes())["body"]
    body["copies"][0]["file"] = {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    whole = {"format": manifest.FORMAT, "sha256": digest(body), "body": body}
    (path / manifest.FILE).write_text(json.dumps(whole))
    with pytest.raises(ArtifactError, match=f"{name} is damaged"):
        both(reader().load(path, verify=verify))[0].matches([5], 1)
