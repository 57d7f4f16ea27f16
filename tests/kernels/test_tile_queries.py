"""The kernel for a few queries by tiles: plain attention for any shape, place and number of threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import found_whatever_torch_is_told, needed, threads

from longctx.kernels import few_queries, machine, tile_queries, tiles
from longctx.kernels.tile_blocks import BLOCK

there = pytest.mark.skipif(not tiles.have(), reason="this processor has no tiles of bfloat16, or may not use them")


def drawn(*shape: int, seed: int, size: float = 1.0) -> torch.Tensor:
    return (size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).bfloat16()


def among(states: torch.Tensor, beside: int) -> torch.Tensor:
    """The same in rows that are so much wider, between numbers that are none, and in another order."""
    batch, heads, keys, width = states.shape
    room = torch.full((keys + 2, batch, heads + 1, width + beside), torch.nan).bfloat16()
    own = room[1 : 1 + keys, :, :heads, 16 : 16 + width].permute(1, 2, 0, 3)
    own.copy_(states)
    return own


def check(found: tuple[torch.Tensor, torch.Tensor], query: torch.Tensor, *given: Any) -> None:
    """Weights are rounded to bfloat16, each by up to 1/256 of itself: so far their mean may be off, and no further."""
    key, value, scale = given
    out, log = few_queries.reference(query, key, value, scale)
    weights = (query.float() @ key.float().transpose(-1, -2) * scale).softmax(-1)
    off = weights @ value.float().abs() / 256
    assert found[0].dtype == found[1].dtype == torch.float32
    assert bool(((found[0] - out).abs() <= off + 1e-5 * (1 + out.abs())).all()), (found[0] - out).abs().max()
    torch.testing.assert_close(found[1], log, rtol=1e-5, atol=1e-4)


@needed
@there
@pytest.mark.parametrize("count", [1, 2, 3])
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 2 * BLOCK + 50)),
    tiled=st.integers(1, 8),
    shared=st.booleans(),
    size=st.sampled_from([0.1, 1.0, 10.0]),
    seed=st.integers(0, 999),
)
def test_it_is_plain_attention(
    count: int, shape: tuple[int, int, int, int], tiled: int, shared: bool, size: float, seed: int
) -> None:
    (batch, heads, rows, keys), width = shape, 32 * tiled
    query = drawn(batch, heads, rows, width, seed=seed, size=size)
    key, value = (drawn(1 if shared else batch, heads, keys, width, seed=seed + n) for n in (1, 2))
    with threads(count):
        check(tile_queries.attend(query, key, value, 0.2), query, key, value, 0.2)


@needed
@there
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 33])
@pytest.mark.parametrize("keys", [1, 15, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK])
def test_it_reads_where_keys_stand_and_nothing_beside(rows: int, keys: int) -> None:
    """Keys in the middle of longer rows, between numbers that are none; values elsewhere, each in its own way."""
    room = torch.full((2, 3, keys + 39, 160), torch.nan).bfloat16()
    key = room[0, None, :, 7 : 7 + keys, 16:80]
    value = room[1, None, :, 9 : 9 + keys, 80:144]
    for seed, one in enumerate((key, value)):
        one.copy_(drawn(*one.shape, seed=seed))
    query = drawn(2, 64, 3, rows, seed=3).permute(0, 2, 3, 1)
    for count in (1, 2, 5):
        with threads(count):
            check(tile_queries.attend(query, key, value, 0.3), query, key, value, 0.3)


@needed
@there
@pytest.mark.parametrize("count", [1, 2, 3])
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 40), st.integers(0, 2 * BLOCK + 50)),
    own=st.integers(1, 2 * BLOCK),
    size=st.sampled_from([0.1, 1.0, 10.0]),
    seed=st.integers(0, 999),
)
def test_of_the_last_keys_a_row_sees_those_it_may(
    count: int, shape: tuple[int, int, int, int], own: int, size: float, seed: int
) -> None:
    """Beside an attention with a mask, and with numbers where nothing is seen that would outweigh all others."""
    batch, heads, rows, before = shape
    seen = torch.rand(rows, own, generator=torch.Generator().manual_seed(seed)) < 0.4
    seen[:, 0] |= ~seen.any(1)  # a row sees some key
    query = drawn(batch, heads, rows, 32, seed=seed, size=size)
    key, value = (drawn(batch, heads, before + own, 32, seed=seed + n) for n in (1, 2))
    unseen = before + (~seen.any(0)).nonzero().flatten()
    key[:, :, unseen], value[:, :, unseen] = 1e4, 1e4
    with threads(count):
        found = tile_queries.attend(query, key, value, 0.2, tile_queries.lay(seen))
    mask = torch.cat((torch.ones(rows, before, dtype=torch.bool), seen), 1)
    scores = (query.float() @ key.float().transpose(-1, -2) * 0.2).masked_fill(~mask, -torch.inf)
    off = scores.softmax(-1) @ value.float().abs() / 256
    expected = scores.softmax(-1) @ value.float()
    assert bool(((found[0] - expected).abs() <= off + 1e-5 * (1 + expected.abs())).all())
    torch.testing.assert_close(found[1], scores.logsumexp(-1), rtol=1e-5, atol=1e-4)


@needed
@there
@pytest.mark.parametrize("count", [1, 2, 3])
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 40)),
    first=st.integers(0, 2 * BLOCK + 50),
    more=st.integers(0, BLOCK + 50),
    own=st.integers(0, 2 * BLOCK),
    shared=st.booleans(),
    seed=st.integers(0, 999),
)
def test_keys_in_two_places_are_those_of_one(
    count: int, shape: tuple[int, int, int], first: int, more: int, own: int, shared: bool, seed: int
) -> None:
    """The first of one text or of every, the others of every; the last of them, wherever they are, hidden from some."""
    (batch, heads, rows), keys = shape, max(1, first + more)
    more = keys - first
    query = drawn(batch, heads, rows, 64, seed=seed)
    key, value = (drawn(batch, heads, keys, 64, seed=seed + n) for n in (1, 2))
    if shared:
        key[:, :, :first], value[:, :, :first] = key[:1, :, :first], value[:1, :, :first]
    hidden = None
    if own:
        seen = torch.rand(rows, min(own, keys), generator=torch.Generator().manual_seed(seed)) < 0.5
        seen[:, 0] = True
        hidden = tile_queries.lay(seen)
    texts = 1 if shared else batch
    one, other = (states[:texts, :, :first].clone() for states in (key, value))
    behind = [among(states[:, :, first:], beside) for states, beside in ((key, 32), (value, 96))]
    with threads(count):
        found = tile_queries.attend(query, one, other, 0.3, hidden, (behind[0], behind[1]))
        expected = tile_queries.attend(query, key, value, 0.3, hidden)
    # blocks begin at other places, and each is rounded by itself
    torch.testing.assert_close(found[0], expected[0], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-4)
    if hidden is None:
        check(found, query, key, value, 0.3)


@needed
@there
@pytest.mark.parametrize("rows", [3, 20])
@pytest.mark.parametrize("scale", [-0.3, 0.0, 1e-9, -1e-9, 30.0])
def test_a_scale_may_be_any_number(scale: float, rows: int) -> None:
    query, key, value = (drawn(1, 2, many, 32, seed=seed) for seed, many in enumerate((rows, BLOCK + 9, BLOCK + 9)))
    check(tile_queries.attend(query, key, value, scale), query, key, value, scale)


@needed
@there
@pytest.mark.parametrize("rows", [3, 20])
def test_logits_far_below_zero_count_as_those_near_it(rows: int) -> None:
    """Keys that are missing to a block have the lowest logits there are, not those of zeros; one key outweighs all."""
    query, key = torch.ones(1, 1, rows, 32).bfloat16(), -torch.ones(1, 1, BLOCK + 5, 32).bfloat16() * 100
    value = drawn(*key.shape, seed=0)
    check(tile_queries.attend(query, key, value, 1.0), query, key, value, 1.0)
    key[0, 0, BLOCK + 2] = 100
    out, log = tile_queries.attend(query, key, value, 1.0)
    assert torch.equal(out, value[:, :, BLOCK + 2 : BLOCK + 3].float().expand_as(out)) and bool((log == 3200).all())


@needed
@there
@pytest.mark.parametrize("rows", [3, 20])
@pytest.mark.parametrize("keys", [40, BLOCK + 9])
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_what_is_no_number_stays_none_and_spoils_nothing_else(where: str, keys: int, rows: int) -> None:
    given = {"query": drawn(1, 2, rows, 32, seed=0), "key": drawn(1, 2, keys, 32, seed=1)}
    given["value"] = drawn(1, 2, keys, 32, seed=2)
    for bad in (torch.nan, torch.inf, -torch.nan):
        tensors = {name: one.clone() for name, one in given.items()}
        tensors[where][0, 1, 2, 3] = bad
        found = tile_queries.attend(*tensors.values(), 0.5)
        expected = few_queries.reference(*tensors.values(), 0.5)
        # an infinite logit below 0 counts for nothing there, and may be no number here
        bad_rows = {"query": [2], "key": list(range(rows)), "value": []}[where]
        for own, other in zip(found, expected, strict=True):
            fine = torch.ones_like(own, dtype=torch.bool)
            fine[0, 1, bad_rows] = False
            assert torch.equal(own.isfinite()[fine], other.isfinite()[fine]), (where, bad)
            assert not bool((own.isfinite() & ~other.isfinite()).any()), (where, bad)


@needed
@there
def test_there_may_be_more_threads_than_blocks_and_texts_in_another_order() -> None:
    for batch, keys in ((1, 3), (3, BLOCK + 1)):
        key, value = (drawn(keys, batch, 2, 64, seed=seed).permute(1, 2, 0, 3) for seed in (0, 1))
        query = drawn(batch, 2, 4, 64, seed=2)
        with threads(7):
            check(tile_queries.attend(query, key, value, 0.3), query, key, value, 0.3)


@needed
@there
def test_what_it_cannot_read_it_refuses() -> None:
    query, key = torch.ones(1, 2, 3, 64).bfloat16(), torch.ones(1, 2, 5, 64).bfloat16()
    widest = torch.ones(1, 2, 5, few_queries.WIDEST + 32).bfloat16()
    for refused in (
        (query.float(), key.float(), key.float()),
        (query.float(), key, key),
        (query, key, key[:, :, :4]),
        (query, key[:, :, :0], key[:, :, :0]),
        (query[:, :, :0], key, key),
        (query[..., :16], key[..., :16], key[..., :16]),
        (query[:, :1], key, key),
        (torch.ones(1, 2, 3, widest.shape[3]).bfloat16(), widest, widest),
        (query, key.expand(2, -1, -1, -1), key.expand(2, -1, -1, -1)),
        (query, key.transpose(-1, -2), key.transpose(-1, -2)),
        (query.to("meta"), key, key),
    ):
        with pytest.raises(ValueError, match="where suits"):
            tile_queries.attend(*refused, 1.0)
    for rows, last in ((17, 5), (3, 6)):  # more rows, and more of the last keys than there are keys
        with pytest.raises(ValueError, match="where suits"):
            tile_queries.attend(query, key, key, 1.0, tile_queries.lay(torch.ones(rows, last, dtype=torch.bool)))
    for more in ((key.float(), key.float()), (key, key[:, :, :2]), (key[..., :32], key[..., :32])):
        with pytest.raises(ValueError, match="where suits"):
            tile_queries.attend(query, key, key, 1.0, None, more)


@needed
def test_without_tiles_it_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "have", lambda: False)
    key = torch.ones(1, 2, 5, 64).bfloat16()
    assert not tile_queries.suits(key, key) and not tile_queries.version(torch.bfloat16, 64)


@needed
@there
def test_a_compiler_that_adds_wrongly_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    find, code = machine.checked.__wrapped__, tile_queries._code
    found_whatever_torch_is_told(tile_queries._right, [torch.bfloat16])
    for right, wrong in (("tdpbf16ps(i8 0, i8 4", "tdpbf16ps(i8 1, i8 4"), ("lshr <16 x i32>", "shl <16 x i32>")):
        with monkeypatch.context() as patch:
            patch.setattr(tile_queries, "_compiled", tile_queries._compiled.__wrapped__)
            patch.setattr(tile_queries, "_code", lambda *given, r=right, w=wrong: code(*given).replace(r, w))
            assert find(torch.bfloat16, tile_queries._right) == ""
