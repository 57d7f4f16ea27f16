"""A document's text, tokens and units: what was packed comes back; arrays that contradict one another are refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import artifacts
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.store import tensors, texts, vectors
from longctx.store.files import Entry
from longctx.store.manifest import StoredDocument

TEXT = "The letter.\nIt was long.\nNobody read it.\n"
FILE = Entry("document-" + "0" * 32 + ".safetensors", 1, "0" * 64)
EXPECTED: dict[str, tuple[str, tuple[int | None, ...]]] = {
    "text": ("uint8", (None,)),
    "token_ids": ("int32", (None,)),
    "token_starts": ("int64", (None,)),
    "units": ("int64", (None, 6)),
}


def described(text: str) -> tuple[Any, list[Any], StoredDocument]:
    encoded, units = artifacts.encoded(text)
    document = encoded.document
    pages, warnings = texts.pages(document), document.warnings
    counts = (len(text), len(encoded.token_ids), len(units))
    return encoded, units, StoredDocument("a", "text", "", warnings, pages, *counts, FILE)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("aé你👍\n\r\x00\ud83d\u200b "), min_size=1, max_size=40))
def test_every_text_comes_back_with_its_tokens_units_and_pages(text: str) -> None:
    encoded, units, stored = described(text)
    found, again = texts.unpack(texts.pack(encoded, units), stored, 3, 10)
    assert found.document == encoded.document
    assert (found.token_ids == encoded.token_ids).all() and (found.token_starts == encoded.token_starts).all()
    assert again == [dataclasses.replace(unit, index=unit.index + 10, document=3) for unit in units]


def first_unit(arrays: Any, column: int, value: int) -> None:
    arrays["units"][0, column] = value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: first_unit(a, 0, 1), "do not tile"),
        (lambda a: first_unit(a, 1, 11), "do not tile"),
        (lambda a: a["units"].__setitem__((-1, 1), 400), "do not tile"),
        (lambda a: first_unit(a, 3, 11), "tokens that begin in them"),
        (lambda a: first_unit(a, 2, 1), "tokens that begin in them"),
        (lambda a: first_unit(a, 4, 5), "outside the text"),
        (lambda a: a["units"].__setitem__((1, 5), 4000), "outside the text"),
        (lambda a: a["token_starts"].__setitem__(0, 1), "begin in order"),
        (lambda a: a["token_starts"].__setitem__(3, 0), "begin in order"),
        (lambda a: a["token_ids"].__setitem__(3, -7), "below 0"),
        (lambda a: a.update(text=a["text"][:-1]), "characters"),
        (lambda a: a["text"].__setitem__(0, 0xFF), "decode"),
        (lambda a: a.update(token_ids=a["token_ids"].astype(np.int64)), "int64"),
        (lambda a: a.update(token_ids=a["token_ids"][:-1]), "token_ids is"),
        (lambda a: a.pop("units"), "and not"),
    ],
)
def test_arrays_that_contradict_one_another_are_refused(change: Any, said: str) -> None:
    encoded, units, stored = described(TEXT)
    arrays = {name: array.copy() for name, array in tensors.unpack(texts.pack(encoded, units), EXPECTED).items()}
    change(arrays)
    with pytest.raises(ValueError, match=said):
        texts.unpack(tensors.pack(arrays), stored, 0, 0)


def test_a_page_outside_the_text_is_refused() -> None:
    encoded, units, stored = described(TEXT)
    page = dataclasses.replace(stored.pages[0], end=len(TEXT) + 1)
    with pytest.raises(ValueError, match="page lies outside"):
        texts.unpack(texts.pack(encoded, units), dataclasses.replace(stored, pages=(page,)), 0, 0)


def test_a_header_larger_than_any_of_ours_is_refused_before_it_is_read() -> None:
    data = tensors.pack({"rows": np.ones((1, 3), np.float32), "keys": np.ones((1, 16), np.uint8)})
    assert vectors.unpack(data)[0].tolist() == [[1, 1, 1]]
    size = int.from_bytes(data[:8], "little")
    padded = json.dumps(json.loads(data[8 : 8 + size])).encode().ljust(2 << 20)
    with pytest.raises(ValueError, match="header claims 2,097,152 bytes"):
        vectors.unpack(len(padded).to_bytes(8, "little") + padded + data[8 + size :])


@pytest.mark.parametrize("row", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused(row: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        vectors.unpack(vectors.pack(np.array([[row, 1]], np.float32), ["a"]))
