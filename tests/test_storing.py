"""A stored document answers as the one in memory does, in any process; what is foreign or damaged is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save

from longctx import Document, Reader
from longctx.backend import tokens as framing
from longctx.calibration import Calibration
from longctx.compiled import CompiledDocument
from longctx.errors import ArtifactError, BadOption, DoesNotFit, UsageError
from longctx.pieces import parts
from longctx.store import manifest, sizes, texts
from longctx.store.artifact import open_artifact
from longctx.types import Page, Selection

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent
QUESTION = "Where is the kettle of Tobin kept?"
NAMES, THINGS = ("Mara", "Tobin", "Ilse", "Kofi", "Dray"), ("ledger", "kettle", "lamp", "chair", "letter")
LINES = [
    f"{name} keeps the {thing} in room {10 * a + b}. The street was quiet that winter, and report {b} said so.\n\n"
    for a, name in enumerate(NAMES)
    for b, thing in enumerate(THINGS)
]
TEXT = "".join(LINES)
DOCUMENT = Document("story", TEXT, (Page(1, 0, 500, "i"), Page(2, 500, len(TEXT))), warnings=("a page is missing.",))


class Encoder:
    """Sentence vectors without a model: how often each letter stands in a text; it counts what it is asked."""

    available = True

    def __init__(self, fingerprint: str = "letters") -> None:
        self.fingerprint = fingerprint
        self.asked: list[str] = []

    def __call__(self, temperature: float = 1.0) -> Encoder:
        return self

    def encode(self, texts: Any, *, progress: Any = None) -> np.ndarray:
        self.asked += texts
        counts = np.array([[t.lower().count(chr(97 + i)) for i in range(26)] for t in texts], dtype=np.float32) + 0.01
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


MODEL = tiny.model("qwen3", num_hidden_layers=2)


def reader_of(model: Any = MODEL, template: str = "system", encoder: Any = None, **options: Any) -> Reader:
    settings: dict[str, Any] = {"calibration": None, "segment_tokens": 96, "encoder": None} | options
    reader = Reader(model, tiny.tokenizer(template), **settings)
    reader._compiler._encoders = encoder or Encoder()
    return reader


def found(selection: Selection) -> list[tuple[str, int, int, int | None]]:
    return [(span.document_id, span.start, span.end, span.page) for span in selection.spans]


@pytest.fixture(scope="module")
def reader() -> Reader:
    return reader_of()


@pytest.fixture(scope="module")
def book(reader: Reader) -> CompiledDocument:
    return reader.compile(DOCUMENT)


@pytest.fixture(scope="module")
def stored(book: CompiledDocument, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with segments, to be copied and damaged."""
    path = tmp_path_factory.mktemp("stored") / "book.lctx"
    book.save(path, segment_kv="disk")
    return path


# --- the same answers ------------------------------------------------------------------------------------------------


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


# --- what does not belong --------------------------------------------------------------------------------------------


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


# --- what is damaged -------------------------------------------------------------------------------------------------


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
    first = _kv(folder).segments[0].file
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


# --- what is taken over ----------------------------------------------------------------------------------------------


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
