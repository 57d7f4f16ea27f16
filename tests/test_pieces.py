"""Pieces of code: where they are cut, and the score that is made of them; prose has none and scores as without them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitting import by_words

from longctx.pieces import MOST, Pieces, parts, pieces
from longctx.types import EncodedDocument, Unit

TOKENS = 64


def unit_of(encoded: EncodedDocument, start: int, end: int, context: tuple[int, int] | None = None) -> Unit:
    return Unit(0, 0, start, end, encoded.token_at(start), encoded.token_at(end), context)


def code(text: str) -> EncodedDocument:
    return by_words(text, kind="code", language="python")


LINES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 40)).map(lambda of: "    " * of[0] + "word " * of[1] + "\n"),
    min_size=1,
    max_size=60,
)


@given(LINES, st.data())
def test_pieces_tile_the_unit_at_lines_and_are_few(lines: list[str], data: st.DataObject) -> None:
    text = "".join(lines)
    encoded = code(text)
    places = encoded.token_starts.tolist()
    start = data.draw(st.sampled_from(places))
    end = data.draw(st.sampled_from([place for place in (*places, len(text)) if place > start]))
    unit = unit_of(encoded, start, end)
    found = parts(encoded, unit, TOKENS)
    if not found:
        return
    assert 2 <= len(found) <= min(MOST, -(-unit.tokens // TOKENS))
    assert "".join(text[a:b] for a, b in found) == text[start:end]
    for a, b in found[1:]:
        assert text[a - 1] == "\n" and text[a:b].splitlines()[0].strip()


def test_a_unit_of_one_piece_and_one_without_lines_are_not_cut() -> None:
    short = code("x = 1\n" * 10)
    assert short.count(0, len(short.document.text)) <= TOKENS
    assert parts(short, unit_of(short, 0, len(short.document.text)), TOKENS) == []
    one_line = code("word " * 500)
    assert parts(one_line, unit_of(one_line, 0, len(one_line.document.text)), TOKENS) == []


def test_of_the_lines_near_a_place_the_least_indented_begins_the_next_piece() -> None:
    """Two pieces, and the lines from the ninth to the 23rd are near the middle."""
    rows = ["        a = b\n"] * 31
    rows[18] = "    return a\n"
    text = "".join(rows)
    encoded = code(text)
    assert TOKENS < encoded.count(0, len(text)) <= 2 * TOKENS
    cut = sum(map(len, rows[:18]))
    assert parts(encoded, unit_of(encoded, 0, len(text)), TOKENS) == [(0, cut), (cut, len(text))]
    rows[18], rows[2] = rows[2], rows[18]  # too far from the middle to be asked
    far = code("".join(rows))
    assert parts(far, unit_of(far, 0, len(text)), TOKENS)[0][1] != sum(map(len, rows[:2]))


def test_however_long_a_unit_is_its_pieces_are_bounded_and_each_text_is_there_once() -> None:
    head = "def long(a):\n"
    text = head + "".join(f"    value_{n} = {n}\n" for n in range(2000))
    encoded = code(text)
    middle = text.index("    value_1000")
    one = unit_of(encoded, len(head), middle, (0, len(head) - 1))
    units = [one, replace(unit_of(encoded, middle, len(text), one.context), index=1)]
    found = pieces([encoded], units, TOKENS)
    assert found.units.tolist() == [0] * MOST + [1] * MOST
    assert found.signed.tolist() == [0, 1] and len({*found.signatures.tolist()}) == 1
    assert len(found.texts) == len({*found.texts}) == 2 * MOST + 1
    assert "".join(found.texts[row] for row in found.rows) == text[len(head) :]
    assert found.texts[found.signatures[0]] == "def long(a):"


def test_a_piece_of_blank_lines_is_none() -> None:
    text = "a = 1\n" + "\n" * 400 + "if a:\n" + "    b = 2\n" * 12
    blank = text.index("\n\n") + 1
    encoded = EncodedDocument(code(text).document, np.arange(len(text), dtype=np.int32), np.arange(len(text)))
    unit = unit_of(encoded, blank, len(text))
    assert text[slice(*parts(encoded, unit, TOKENS)[0])].isspace()
    found = pieces([encoded], [unit], TOKENS)
    assert len(found.texts) and not any(piece.isspace() for piece in found.texts)


def test_prose_has_no_pieces() -> None:
    encoded = by_words("A line of prose.\n" * 200)
    found = pieces([encoded], [unit_of(encoded, 0, len(encoded.document.text), (0, 5))], TOKENS)
    assert found.texts == () and not len(found.units) and not len(found.signed)
    values = np.array([0.25], np.float32)
    assert found.score(values, np.zeros(0, np.float32), 0.5).tobytes() == values.tobytes()


@given(st.integers(1, 6), st.integers(0, 12), st.integers(1, 8), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_the_score_is_the_best_piece_with_the_signature_weighted(
    units: int, count: int, texts: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    owners, rows = rng.integers(0, units, count), rng.integers(0, texts, count)
    signed = np.flatnonzero(rng.integers(0, 2, units))
    signatures = rng.integers(0, texts, len(signed))
    whole, found = (rng.uniform(-1, 1, n).astype(np.float32) for n in (units, texts))
    before = whole.copy()
    values = Pieces(("",) * texts, owners, rows, signed, signatures).score(whole, found, share)
    of = dict(zip(signed.tolist(), signatures.tolist(), strict=True))
    for unit in range(units):
        best = max([whole[unit], *(found[row] for owner, row in zip(owners, rows, strict=True) if owner == unit)])
        expected = (1 - share) * best + share * found[of[unit]] if unit in of else best
        assert values[unit] == pytest.approx(expected, abs=1e-6)
        if unit not in of and unit not in owners:
            assert values[unit].tobytes() == before[unit].tobytes()
    assert whole.tobytes() == before.tobytes(), "the input was changed"


def test_more_pieces_that_say_the_same_change_no_score() -> None:
    none = np.array([], dtype=np.intp)
    found = np.array([0.4, 0.1], np.float32)
    scores = [
        Pieces(("", ""), np.zeros(count, np.intp), np.zeros(count, np.intp), none, none).score(
            np.array([0.2], np.float32), found, 0.1
        )
        for count in (1, 2, 8)
    ]
    assert [score.tolist() for score in scores] == [scores[0].tolist()] * 3
