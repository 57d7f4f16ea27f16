"""A stored document answers as the one in memory does, in any process and for every family of models."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from stored_books import DOCUMENT, LINES, NAMES, QUESTION, THINGS, found, reader_of

from longctx import Document, Reader
from longctx.calibration import Calibration
from longctx.compiled import CompiledDocument
from longctx.store import manifest
from longctx.store.artifact import open_artifact

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("verify", ["full", "lazy", "off"])
@pytest.mark.parametrize("segment_kv", ["none", "summary", "disk", "ram"])
def test_what_is_loaded_is_what_was_saved_and_selects_the_same(
    book: CompiledDocument, tmp_path: Path, segment_kv: str, verify: Any
) -> None:
    saved = book.save(tmp_path / "book.lctx", segment_kv=segment_kv)
    assert saved.segment_kv == segment_kv and saved.written_bytes == saved.bytes
    reader = reader_of()
    loaded = reader.load(tmp_path / "book.lctx", verify=verify)
    assert loaded.documents == book.documents and loaded.units == book.units and loaded.segments == book.segments
    assert loaded.warnings == book.warnings and loaded.fingerprint == book.fingerprint
    assert all(
        (a.token_ids == b.token_ids).all() and (a.token_starts == b.token_starts).all()
        for a, b in zip(loaded.encoded, book.encoded, strict=True)
    )
    assert len(loaded.memory) == (len(book.segments) if segment_kv == "ram" else 0)
    for selector in ("auto", "xl3m", "infiniretri", "longheads", "dense", "bm25"):
        one, other = (
            r.select(b, QUESTION, budget_tokens=150, selector=selector)
            for r, b in ((reader, loaded), (reader_of(), book))
        )
        assert found(one) == found(other) and one.text == other.text and one.warnings == other.warnings
        np.testing.assert_allclose([s.score for s in one.profile], [s.score for s in other.profile], atol=1e-4)


def test_a_question_on_stored_segments_costs_the_question_only(reader: Reader, stored: Path) -> None:
    loaded = reader.load(stored)
    inquiry = loaded.probe.inquiry(QUESTION, likelihood=True)
    selection = reader.select(loaded, QUESTION, budget_tokens=150, selector="xl3m")
    assert selection.tokens_read == len(loaded.segments) * len(inquiry.ids)


@pytest.mark.parametrize("segment_kv", ["summary", "disk"])
def test_summaries_are_the_bits_that_were_made_and_a_question_on_them_touches_no_segment(
    book: CompiledDocument, tmp_path: Path, segment_kv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.save(tmp_path / "book.lctx", segment_kv=segment_kv)
    reader = reader_of()
    loaded = reader.load(tmp_path / "book.lctx")
    heads = loaded.probe.middle()
    summaries = loaded._stored.summaries(heads)  # type: ignore[union-attr]
    assert summaries is not None and len(summaries) == len(book.segments)
    for segment, found_again in enumerate(summaries):
        units = [book.units[unit].tokens for unit in range(*book.segments[segment])]
        made = book.probe.summarise(book.memory.get(segment), units, heads)
        assert (found_again.pairs, found_again.units) == (made.pairs, made.units)
        for name in ("representation", "low", "high"):
            assert torch.equal(getattr(found_again, name), getattr(made, name))
    for touched in ("read", "read_again", "ask"):
        monkeypatch.setattr(loaded, touched, None)
    one = reader.select(loaded, QUESTION, budget_tokens=150, selector="longheads")
    other = reader.select(book, QUESTION, budget_tokens=150, selector="longheads")
    assert one.tokens_read == other.tokens_read == len(loaded.probe.inquiry(QUESTION).ids)
    assert found(one) == found(other) and one.warnings == other.warnings


def test_a_summary_that_is_stored_alone_takes_little(tmp_path: Path) -> None:
    path, whole = tmp_path / "book.lctx", tmp_path / "whole.lctx"
    reader = reader_of()
    saved = reader.compile(DOCUMENT, path=path, segment_kv="summary").saved
    other = reader.compile(DOCUMENT, path=whole, segment_kv="disk").saved
    assert saved is not None and other is not None and saved.segment_kv == "summary"
    assert open_artifact(path).manifest.kv is None and not list(path.glob("segment-*"))
    assert {p.name for p in path.glob("summary-*")} == {p.name for p in whole.glob("summary-*")}
    assert saved.bytes < 0.5 * other.bytes


def test_summaries_for_other_heads_are_made_again_and_that_is_said(stored: Path) -> None:
    reader = reader_of(calibration=Calibration(reader_of().fingerprint, 0, 1, ((0, 1),), (1.0,), 1.0, ((0, 0), (1, 3))))
    loaded = reader.load(stored)
    one, other = (
        reader.select(b, QUESTION, budget_tokens=150, selector="longheads") for b in (loaded, reader.compile(DOCUMENT))
    )
    assert found(one) == found(other)
    assert any("other heads" in warning for warning in one.warnings)


def test_stored_keys_are_the_bits_that_were_read_and_are_mapped(book: CompiledDocument, stored: Path) -> None:
    loaded = reader_of().load(stored)
    for segment, kept in loaded.read(range(len(loaded.segments))):
        other = book.memory.get(segment)
        assert kept.position == other.position
        for mine, own in zip((*kept.keys, *kept.values), (*other.keys, *other.values), strict=True):
            assert torch.equal(mine, own)
    name = open_artifact(stored).manifest.kv.segments[0].file.name  # type: ignore[union-attr]
    if sys.platform == "linux":
        held = next(iter(loaded.read([0])))
        assert held and name in Path("/proc/self/maps").read_text()


def test_eight_bits_are_smaller_and_nearly_the_same(book: CompiledDocument, tmp_path: Path) -> None:
    exact = book.save(tmp_path / "exact.lctx", segment_kv="disk")
    small = book.save(tmp_path / "small.lctx", segment_kv="disk", segment_form="int8")
    lighter, heavier = (
        sum(s.file.size for s in _kv(tmp_path / name).segments) for name in ("small.lctx", "exact.lctx")
    )
    assert lighter < 0.45 * heavier and small.bytes < exact.bytes
    loaded = reader_of().load(tmp_path / "small.lctx")
    for segment, kept in loaded.read(range(len(loaded.segments))):
        own = book.memory.get(segment)
        for mine, other in zip((*kept.keys, *kept.values), (*own.keys, *own.values), strict=True):
            assert mine.dtype == other.dtype and mine.shape == other.shape and not torch.equal(mine, other)
        for mine, other in zip(kept.keys, own.keys, strict=True):  # one scale per channel
            assert ((mine - other).abs() <= other.abs().amax(1, keepdim=True) / 254 + 1e-6).all()
        for mine, other in zip(kept.values, own.values, strict=True):  # one scale per token
            assert ((mine - other).abs() <= other.abs().amax(2, keepdim=True) / 254 + 1e-6).all()
    one = reader_of().select(loaded, QUESTION, budget_tokens=150, selector="auto")
    assert found(one) == found(reader_of().select(book, QUESTION, budget_tokens=150, selector="auto"))


def test_eight_bits_are_never_stored_again_as_exact(book: CompiledDocument, tmp_path: Path) -> None:
    book.save(tmp_path / "small.lctx", segment_kv="ram", segment_form="int8")
    loaded = reader_of().load(tmp_path / "small.lctx")
    saved = loaded.save(tmp_path / "exact.lctx", segment_kv="disk")
    assert saved.tokens_read == loaded.tokens
    for segment, kept in reader_of().load(tmp_path / "exact.lctx").read(range(len(book.segments))):
        assert torch.equal(kept.keys[1], book.memory.get(segment).keys[1])


def _kv(path: Path) -> Any:
    return manifest.load(path).kv


@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family != "qwen3"])
def test_every_family_of_models_is_stored_and_found_again(family: str, tmp_path: Path) -> None:
    model = tiny.model(family, num_hidden_layers=2, dtype=torch.bfloat16)
    reader = reader_of(model)
    book = reader.compile(DOCUMENT, path=tmp_path / "book.lctx", segment_kv="disk")
    fresh = reader_of(model).compile(DOCUMENT)
    one, other = (reader.select(b, QUESTION, budget_tokens=150, selector="xl3m") for b in (book, fresh))
    assert found(one) == found(other) and book.spent() < fresh.spent()


def test_a_hundred_questions_in_any_order_are_a_hundred_fresh_runs(tmp_path: Path) -> None:
    model, document = tiny.model(num_hidden_layers=1), Document.from_text("".join(LINES[3:11]))
    asked = [
        f"{word} is the {thing} of {name}?"
        for word in ("Where", "What", "Which room", "Who said where")
        for name in NAMES
        for thing in THINGS
    ]
    fresh = {q: found(reader_of(model).select(document, q, budget_tokens=80)) for q in asked}
    assert len(asked) == 100 and len({tuple(spans) for spans in fresh.values()}) > 5
    random.Random(7).shuffle(asked)
    reader = reader_of(model)
    loaded = reader.compile(document, path=tmp_path / "book.lctx", segment_kv="disk")
    for question in asked:
        assert found(reader.select(loaded, question, budget_tokens=80)) == fresh[question], question


def test_another_process_finds_the_same_spans(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model", num_hidden_layers=2)
    reader = Reader.from_pretrained(folder, calibration=None, encoder=None, segment_tokens=96)
    book = reader.compile(DOCUMENT)
    book.save(tmp_path / "book.lctx", segment_kv="disk")
    selection = reader.select(book, QUESTION, budget_tokens=150)
    (tmp_path / "fast.toml").write_text('calibration = "none"\nencoder = "none"\nsegment_tokens = 96\nbudget = 150\n')
    words = ["select", "book.lctx", QUESTION, "--model", "model", "--config", "fast.toml", "--json", "--quiet"]
    ran = subprocess.run(
        [sys.executable, "-m", "longctx", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    told = json.loads(ran.stdout)
    assert [(s["document_id"], s["start"], s["end"], s["page"]) for s in told["spans"]] == found(selection)
    assert told["text"] == selection.text and told["tokens_read"] < selection.tokens_read + book.tokens
