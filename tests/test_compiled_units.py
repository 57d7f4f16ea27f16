"""The units of a compiled document: they tile every text, carry their context and are embedded once for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
from compiled_books import QUESTION, TEXT, book_of, tiny_reader
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx import Reader
from longctx.errors import BadOption
from longctx.pieces import parts
from longctx.types import Document

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reader() -> Reader:
    return tiny_reader()


PIECES = (
    "The letter. ",
    "你好。",
    "👍🏽",
    "\r\n",
    "\n\n",
    " ",
    "x" * 40,
    "e\u0301",
    "\u200b",
    "\ud83d",
    "\x00",
    tiny.START,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=20).map("".join), min_size=1, max_size=3))
def test_units_tile_every_text_and_segments_every_token(texts: list[str]) -> None:
    texts = [text for text in texts if text.strip()] or ["x"]
    reader = _shared_reader()
    book = reader.compile([Document.from_text(text, id=str(i)) for i, text in enumerate(texts)])
    for number, text in enumerate(texts):
        own = [i for i, unit in enumerate(book.units) if unit.document == number]
        assert "".join(book.text(i) for i in own) == text
        assert np.concatenate([book.ids(i) for i in own]).tolist() == book.encoded[number].token_ids.tolist()
        assert [book.units[i].index for i in own] == own
    whole = np.concatenate([book.segment_ids(s) for s in range(len(book.segments))])
    assert len(whole) == book.tokens == sum(len(e.token_ids) for e in book.encoded)


_MADE: list[Reader] = []


def _shared_reader() -> Reader:
    if not _MADE:
        model = tiny.model(num_hidden_layers=1)
        options: dict[str, Any] = {"encoder": None, "calibration": None, "segment_memory_bytes": 0}
        _MADE.append(Reader(model, tiny.tokenizer("system"), segment_tokens=64, **options))
    return _MADE[0]


def test_a_units_context_is_shown_to_scorers_and_is_no_part_of_its_text(reader: Reader) -> None:
    document = Document(
        "f.py", "def keep(ledger):\n" + "    kettle = ledger + 1\n" * 30, kind="code", language="python"
    )
    book = book_of(reader, 0, document)
    carrying = [i for i, unit in enumerate(book.units) if unit.context is not None]
    if not carrying:
        pytest.skip("the Python grammar is not installed")
    last = carrying[-1]
    assert "def keep" not in book.text(last) and book.shown(last).startswith("def keep(ledger):")
    assert book.lexical("keep")[last] > 0


class Encoder:
    """Counts letters, and how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    why_unavailable = ""

    def __call__(self, temperature: float) -> Encoder:
        return self

    def encode(self, texts: Any, *, progress: Any = None) -> np.ndarray:
        self.asked.append(len(texts))
        counts = np.array([[text.lower().count(c) for c in "aeiou"] for text in texts], dtype=np.float32) + 0.1
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_units_are_embedded_once_for_all_questions(reader: Reader) -> None:
    book = book_of(reader, 0)
    encoder = Encoder()
    book.embeddings.encoder = encoder
    first = book.similarity("a e")
    assert first.shape == (len(book.units),) and first.dtype == np.float32 and first.max() <= 1.0001
    book.similarity("o u")
    assert encoder.asked == [len(book.units), 1, 1]
    book.similarity("o u", temperature=0.5)
    assert encoder.asked[3:] == [len(book.units), 1]


PROSE = Document.from_text(TEXT.replace(". The", ".\nThe"), id="prose")  # it could be cut as code is
CODE = Document(
    "f.py",
    "\n\n".join(
        f"def keep_{name}(ledger):\n" + "".join(f"    {name}_{n} = ledger + {n * n}\n" for n in range(30))
        for name in ("eels", "oak", "ivy")
    ),
    kind="code",
    language="python",
)


@pytest.mark.parametrize("signature", [0.0, 0.4])
def test_a_unit_of_code_scores_by_its_best_piece_and_prose_by_itself(reader: Reader, signature: float) -> None:
    book = book_of(reader, 0, [PROSE, CODE])
    encoder = Encoder()
    book.embeddings.encoder = encoder
    plain = book.similarity("a e")
    found = book.similarity("a e", 1.0, 16, signature)
    asked = encoder.encode(["a e"])[0]
    for number, unit in enumerate(book.units):
        encoded = book.encoded[unit.document]
        assert plain[number] == pytest.approx(float(encoder.encode([book.shown(number)])[0] @ asked), abs=1e-5)
        if unit.document == 0:
            assert found[number].tobytes() == plain[number].tobytes()
            continue
        texts = [book.shown(number), *(CODE.text[a:b] for a, b in parts(encoded, unit, 16))]
        best = max(float(encoder.encode([text])[0] @ asked) for text in texts)
        if unit.context is not None:
            own = float(encoder.encode([CODE.text[slice(*unit.context)]])[0] @ asked)
            best = (1 - signature) * best + signature * own
        assert found[number] == pytest.approx(best, abs=1e-5)
    assert (found[[unit.document == 1 for unit in book.units]] != plain[[u.document == 1 for u in book.units]]).any()


def test_prose_has_the_scores_it_had_and_nothing_more_is_embedded_of_it(reader: Reader) -> None:
    book = book_of(reader, 0, PROSE)
    assert any(parts(book.encoded[0], unit, 16) for unit in book.units)
    encoder = Encoder()
    book.embeddings.encoder = encoder
    rows = encoder.encode([book.text(i) for i in range(len(book.units))])
    expected = rows @ encoder.encode(["a e"])[0]
    encoder.asked.clear()
    assert book.similarity("a e").tobytes() == expected.tobytes()
    assert book.similarity("a e", 1.0, 16, 0.5).tobytes() == expected.tobytes()
    assert encoder.asked == [len(book.units), 1, 1]


def test_pieces_are_embedded_once_for_all_questions(reader: Reader) -> None:
    book = book_of(reader, 0, CODE)
    encoder = Encoder()
    book.embeddings.encoder = encoder
    first = book.similarity("a e", 1.0, 16, 0.1)
    assert encoder.asked[0] == len(book.units) and encoder.asked[1] > len(book.units) and encoder.asked[2:] == [1]
    assert book.similarity("a e", 1.0, 16, 0.1).tobytes() == first.tobytes() and encoder.asked[3:] == [1]
    book.similarity("a e")
    assert encoder.asked[4:] == [1]


def test_without_an_encoder_similarity_says_how_to_have_one(reader: Reader) -> None:
    book = book_of(reader, 0)
    assert "encoder=None" in book.why_no_embeddings
    with pytest.raises(BadOption, match="encoder=None: make it with"):
        book.similarity(QUESTION)
