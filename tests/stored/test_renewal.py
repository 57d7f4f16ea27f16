"""What is taken over: edited, added and removed documents, copies, interrupted runs, full disks."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from stored_books import DOCUMENT, LINES, QUESTION, TEXT, Encoder, found, reader_of

from longctx import Document
from longctx.compiled import CompiledDocument
from longctx.errors import ArtifactError, DoesNotFit
from longctx.store import sizes
from longctx.store.artifact import open_artifact

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_edited_document_is_read_again_only_where_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "book.lctx"
    first = reader_of().compile(DOCUMENT, path=path, segment_kv="disk")
    assert first.saved is not None and first.saved.tokens_read == first.tokens
    assert first.saved.units_embedded == len(first.units)
    text = TEXT.replace("Ilse keeps the lamp in room 22", "Ilse sold the lamp") + "Nobody keeps the clock.\n\n"
    edited = Document("story", text)
    encoder = Encoder()
    book = reader_of(encoder=encoder).compile(edited, path=path, segment_kv="disk")
    assert book.saved is not None and 0 < book.saved.tokens_read < 0.5 * book.tokens
    assert 0 < book.saved.units_embedded == len(encoder.asked) < 0.3 * len(book.units)
    assert book.saved.written_bytes < 0.6 * book.saved.bytes
    fresh = reader_of().compile(edited)
    for selector in ("auto", "xl3m", "dense"):
        question = "Who sold the lamp and who keeps the clock?"
        one, other = (reader_of().select(b, question, budget_tokens=150, selector=selector) for b in (book, fresh))
        assert found(one) == found(other)
    kept = {s.key: s.file for s in open_artifact(path).manifest.summaries.segments}  # type: ignore[union-attr]
    again = reader_of().compile(edited, path=path, segment_kv="disk")
    assert again.saved is not None
    assert (again.saved.tokens_read, again.saved.units_embedded, again.saved.written_bytes) == (0, 0, 0)
    assert {s.key: s.file for s in open_artifact(path).manifest.summaries.segments} == kept  # type: ignore[union-attr]


def test_with_summaries_alone_a_longer_document_is_read_again_only_where_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "book.lctx"
    first = reader_of().compile(DOCUMENT, path=path, segment_kv="summary")
    assert first.saved is not None and first.saved.tokens_read == first.tokens
    longer = Document("story", TEXT + "Nobody keeps the clock.\n\n")
    book = reader_of().compile(longer, path=path, segment_kv="summary")
    assert book.saved is not None and 0 < book.saved.tokens_read <= 2 * first.longest_segment < 0.5 * book.tokens
    fresh = reader_of().compile(longer)
    one, other = (reader_of().select(b, QUESTION, budget_tokens=150, selector="longheads") for b in (book, fresh))
    assert found(one) == found(other)
    near = reader_of().load(path).save(tmp_path / "near.lctx", segment_kv="summary")
    assert near.tokens_read == 0


def test_adding_a_hundredth_costs_less_than_a_twentieth(tmp_path: Path) -> None:
    reader = reader_of(tiny.model(num_hidden_layers=1), segment_tokens=64)
    lines = [f"In report {number} room {number * 7} is empty. Nobody was there.\n\n" for number in range(101)]
    first, book = (
        reader.compile(Document.from_text("".join(lines[:count])), path=tmp_path / "book.lctx", segment_kv="disk")
        for count in (100, 101)
    )
    assert first.saved is not None and book.saved is not None and len(first.segments) >= 50
    assert 0 < book.saved.tokens_read < 0.05 * first.saved.tokens_read
    assert 0 < book.saved.units_embedded < 0.05 * first.saved.units_embedded


def test_documents_come_and_go_and_the_others_are_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "book.lctx"
    one, two = Document.from_text("".join(LINES[:12]), "one"), Document.from_text("".join(LINES[12:]), "two")
    reader = reader_of()
    both = reader.compile([one, two], path=path, segment_kv="disk")
    files = {p.name: p.stat().st_mtime_ns for p in path.glob("segment-*")}
    alone = reader.compile([two], path=path, segment_kv="disk")
    assert alone.saved is not None and alone.saved.tokens_read == 0 and alone.documents == (two,)
    left = {p.name: p.stat().st_mtime_ns for p in path.glob("segment-*")}
    assert left.items() < files.items() and len(left) == len(alone.segments)
    back = reader.compile([*alone.documents, one], path=path, segment_kv="disk")
    assert back.saved is not None and back.saved.tokens_read == both.encoded[0].token_ids.size
    selection = reader.select(back, "Where does Mara keep the ledger?", budget_tokens=60, selector="bm25")
    assert found(selection)[-1][0] == "one"


def test_a_copy_shares_the_files_of_segments_instead_of_writing_them(stored: Path, tmp_path: Path) -> None:
    near = stored.with_name("near.lctx")
    saved = reader_of().load(stored).save(near, segment_kv="disk")
    assert saved.tokens_read == 0 and saved.written_bytes < 0.2 * saved.bytes
    for path in near.glob("segment-*"):
        assert path.samefile(stored / path.name)
    shutil.rmtree(near)
    assert reader_of().load(stored, verify="full").tokens > 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("before", [True, False])
def test_a_full_disk_is_said_with_numbers_and_nothing_half_written_stays(
    book: CompiledDocument, tmp_path: Path, before: bool, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = book.tokens * 2 * 2 * 2 * 16 * 4  # keys and values of two layers with two heads of 16 numbers
    other, real = reader_of().compile(Document("story", TEXT[:400])), os.fsync
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 5_000_000))  # type: ignore[attr-defined]
    for step in (2, 3, 7, 12, 20):  # a document, embeddings, journal and segments
        folder = tmp_path / str(step)
        if before:
            other.save(folder, segment_kv="disk")
        names, calls = sorted(tmp_path.rglob("*")), []

        def full(handle: int, step: int = step, calls: list[int] = calls) -> None:
            calls.append(handle)
            if len(calls) >= step:
                raise OSError(number, os.strerror(number))
            real(handle)

        with monkeypatch.context() as patched, pytest.raises(DoesNotFit) as caught:
            patched.setattr(os, "fsync", full)
            book.save(folder, segment_kv="disk")
        said = str(caught.value)
        assert str(folder) in said and os.strerror(number) in said and caught.value.exit_code == 3
        needed = int(said.partition(" about ")[2].partition(" bytes")[0].replace(",", ""))
        assert keys < needed < 1.5 * keys and "5,000,000 are free" in said and "Free some space" in said
        assert sorted(tmp_path.rglob("*")) == names
        if before:
            assert reader_of().load(folder, verify="full").documents == other.documents
    book.save(folder, segment_kv="disk")
    assert reader_of().load(folder, verify="full").documents == book.documents


def test_an_interrupted_compile_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "book.lctx"
    whole = reader_of().compile(DOCUMENT)
    seen: list[tuple[str, int]] = []

    def stop(stage: str, done: int, total: int) -> None:
        seen.append((stage, done))
        if stage == "reading" and done == 5:
            raise KeyboardInterrupt

    encoder = Encoder()
    with pytest.raises(KeyboardInterrupt):
        reader_of(encoder=encoder).compile(DOCUMENT, path=path, segment_kv="disk", progress=stop)
    assert seen[-1] == ("reading", 5) and len(encoder.asked) == len(whole.units)
    with pytest.raises(ArtifactError, match="interrupted"):
        reader_of().load(path)
    encoder = Encoder()
    book = reader_of(encoder=encoder).compile(DOCUMENT, path=path, segment_kv="disk")
    assert encoder.asked == [] and book.saved is not None
    left = whole.tokens - book.saved.tokens_read
    assert 4 == sum(1 for size in np.cumsum(_longest_first(whole)) if size <= left)
    one, other = (reader_of().select(b, QUESTION, budget_tokens=150) for b in (book, whole))
    assert found(one) == found(other)


def _longest_first(book: CompiledDocument) -> list[int]:
    return sorted((len(book.segment_ids(s)) for s in range(len(book.segments))), reverse=True)


def test_auto_stores_segments_where_they_are_small_enough(
    book: CompiledDocument, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert book.save(tmp_path / "book.lctx").segment_kv == "disk"
    monkeypatch.setattr(sizes, "AUTO_BYTES", 1000)
    saved = book.save(tmp_path / "book.lctx")
    assert saved.segment_kv == "none" and list((tmp_path / "book.lctx").glob("segment-*")) == []
