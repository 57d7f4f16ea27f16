"""What was stored for another model, tokenizer, template or encoder is refused, or made again and that is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from stored_books import DOCUMENT, MODEL, QUESTION, TEXT, Encoder, found, reader_of

from longctx import Document, Reader
from longctx.backend import tokens as framing
from longctx.compiled import CompiledDocument
from longctx.errors import ArtifactError, BadOption, UsageError
from longctx.pieces import parts

pytestmark = pytest.mark.usefixtures("one_thread")


def nudged() -> Any:
    """A model of the same fingerprint, whose sampled weights are the same and the others are not."""
    model = tiny.model("qwen3", num_hidden_layers=2)
    with torch.no_grad():
        for weight in model.parameters():
            flat = weight.view(-1)
            step = max(1, flat.numel() // 61)
            unseen = torch.ones(flat.numel(), dtype=torch.bool)
            unseen[::step] = step == 1
            flat[unseen & (torch.arange(flat.numel()) % step != 0)] *= 1.5
    return model


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: reader_of(tiny.model("qwen3", num_hidden_layers=2, seed=1)), "model"),
        (lambda: reader_of(tiny.model("qwen3", num_hidden_layers=2, dtype=torch.bfloat16)), "dtype"),
        (lambda: reader_of(tiny.model("llama", num_hidden_layers=2)), "model"),
        (lambda: reader_of(template="no_system"), "template"),
        (lambda: _with_another_word(), "tokenizer"),
    ],
)
def test_another_model_tokenizer_or_template_is_refused_by_name(
    stored: Path, make: Callable[[], Reader], field: str
) -> None:
    with pytest.raises(ArtifactError, match=rf"differ in (\w+ \([^)]*\), )*{field} \(.*compile the documents again"):
        make().load(stored)


def _with_another_word() -> Reader:
    tokenizer = tiny.tokenizer("system")
    tokenizer.add_tokens(["kettle"])
    return Reader(MODEL, tokenizer, calibration=None, encoder=None, segment_tokens=96)


def test_a_model_that_answers_otherwise_is_found_by_the_canary_before_its_keys_are_used(
    stored: Path, reader: Reader
) -> None:
    other = reader_of(nudged())
    assert other.fingerprint == reader.fingerprint
    with pytest.raises(ArtifactError, match="canary.*log-probability"):
        other.load(stored, verify="full")
    loaded = other.load(stored)
    with pytest.raises(ArtifactError, match="canary"):
        other.select(loaded, QUESTION, budget_tokens=150, selector="auto")
    assert found(other.select(loaded, QUESTION, budget_tokens=150, selector="bm25"))


def test_keys_read_behind_another_prompt_are_read_again_and_that_is_said(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat template may write the date: the next day every stored key would stand behind other tokens."""
    monkeypatch.setattr(framing, "INSTRUCTION", "It is Tuesday. " + framing.INSTRUCTION)
    reader = reader_of()
    loaded, fresh = reader.load(stored, verify="full"), reader.compile(DOCUMENT)
    one, other = (reader.select(b, QUESTION, budget_tokens=150, selector="xl3m") for b in (loaded, fresh))
    assert found(one) == found(other) and one.text == other.text
    assert any("another prompt frame" in warning for warning in one.warnings)
    assert one.tokens_read >= loaded.tokens


def test_units_cut_otherwise_than_the_reader_would_are_used_and_that_is_said(stored: Path) -> None:
    reader = reader_of(splitter="fixed:tokens=40", segment_tokens=120)
    loaded = reader.load(stored)
    for _ in range(2):  # of every result it is true
        warnings = reader.select(loaded, QUESTION, budget_tokens=150, selector="bm25").warnings
        assert any("splitter" in w and "segment_tokens (96, now 120)" in w for w in warnings)
    reader = reader_of()
    assert not reader.select(reader.load(stored), QUESTION, budget_tokens=150, selector="bm25").warnings[1:]


def test_embeddings_of_another_encoder_are_made_again_and_that_is_said(stored: Path) -> None:
    encoder = Encoder("vowels")
    reader = reader_of(encoder=encoder)
    loaded = reader.load(stored)
    selection = reader.select(loaded, QUESTION, budget_tokens=150, selector="dense")
    assert any("another encoder's" in warning for warning in selection.warnings)
    assert len(encoder.asked) == len(loaded.units) + 1
    again = reader.select(loaded, QUESTION, budget_tokens=150, selector="dense")
    assert not any("another encoder's" in warning for warning in again.warnings)
    assert len(encoder.asked) == len(loaded.units) + 2


def test_true_is_a_bar_while_saving(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = reader_of(segment_memory_bytes=0).compile(DOCUMENT)
    assert capsys.readouterr().err == ""
    made.save(tmp_path / "book.lctx", segment_kv="disk", progress=True)
    assert "reading: " in capsys.readouterr().err


CODE = Document("f.py", "".join(f"def f_{n}(a):\n    return a + {n}\n" for n in range(60)), kind="code")


LINED = Document.from_text(TEXT.replace(". The", ".\nThe"), id="lined")  # prose that could be cut as code is


def test_pieces_of_stored_code_are_embedded_where_they_are_asked_for_and_nothing_else(tmp_path: Path) -> None:
    """What is stored is the same with them and without, so that no artifact is scored by what it does not hold."""
    fresh = reader_of().compile([LINED, CODE], path=tmp_path / "book.lctx")
    encoder = Encoder()
    reader = reader_of(encoder=encoder)
    loaded = reader.load(tmp_path / "book.lctx")
    for selector in ("dense", "dense:pieces=16", "auto:model=false"):
        one, other = (
            r.select(b, QUESTION, budget_tokens=150, selector=selector)
            for r, b in ((reader, loaded), (reader_of(), fresh))
        )
        assert found(one) == found(other) and one.warnings == other.warnings
        np.testing.assert_allclose([s.score for s in one.profile], [s.score for s in other.profile], atol=1e-5)
        if selector == "dense":
            assert encoder.asked == [QUESTION]
    pieces = [text for text in encoder.asked if text != QUESTION]
    assert pieces and all(text in CODE.text for text in pieces)
    assert any(parts(loaded.encoded[0], unit, 16) for unit in loaded.units if unit.document == 0)


@pytest.mark.parametrize("options", [{"segment_kv": "cloud"}, {"segment_form": "int4"}])
def test_unknown_words_are_refused_before_anything_is_written(
    book: CompiledDocument, tmp_path: Path, options: dict[str, str]
) -> None:
    with pytest.raises(BadOption, match="must be one of|one of exact"):
        book.save(tmp_path / "book.lctx", **options)
    assert not (tmp_path / "book.lctx").exists()
    with pytest.raises(BadOption, match="verify='some'"):
        reader_of().load(tmp_path, verify="some")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is a file"):
        (tmp_path / "file").write_text("mine")
        book.save(tmp_path / "file")
