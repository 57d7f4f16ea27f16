"""Attention of a few queries by the kernel: where it is taken, and that it says what the library's says."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from machines import needed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from longctx.backend import parts, quick
from longctx.backend.attention import _folded
from longctx.backend.rows import Rows
from longctx.kernels import few_queries, tile_queries, tiles

_MANY = 1500


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of rows that the kernel was given, where it is always the faster one."""
    seen: list[tuple[int, ...]] = []
    attend = few_queries.attend

    def counted(query: torch.Tensor, *given: Any, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(tuple(query.shape))
        return attend(query, *given, **more)

    monkeypatch.setattr(few_queries, "attend", counted)
    monkeypatch.setattr(quick, "_ways", lambda dtype, width, threads: [1] * 9)
    return seen


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needed
@pytest.mark.parametrize("groups", [1, 3])
def test_one_token_over_many_keys_goes_by_the_kernel(calls: list[tuple[int, ...]], groups: int) -> None:
    query, key, value = (
        drawn(2, 2 * groups, 1, 32, seed=0),
        drawn(2, 2, _MANY, 32, seed=1),
        drawn(2, 2, _MANY, 32, seed=2),
    )
    expected = F.scaled_dot_product_attention(query, key, value, scale=0.3, enable_gqa=True)
    with torch.inference_mode():
        found = _folded(query, key, value, None, 0.3, 0.0)
        part = parts.part(parts.fold(query, 2), key, value, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(part.out.view_as(expected), expected, rtol=1e-4, atol=1e-5)
    assert calls == [(2, 2, groups, 32)] * 2


@needed
def test_it_is_not_asked_for_what_it_is_not_for(calls: list[tuple[int, ...]]) -> None:
    query, key = drawn(1, 2, 1, 32, seed=0), drawn(1, 2, _MANY, 32, seed=1)
    assert quick.over(query, key, key, 1.0) is None  # gradients are kept
    with torch.inference_mode():
        few = key[:, :, :100]
        for other in (
            (query, few, few),
            (query.expand(1, 2, quick.MOST + 1, 32), key, key),
            (query.double(), key.double(), key.double()),
            (query.bfloat16(), key, key),
        ):
            assert quick.over(*other, 1.0) is None
        assert not calls
        mask = torch.ones(1, _MANY, dtype=torch.bool)
        parts.part(query, key, key, 1.0, mask)
        parts.part(query, key, key, 1.0, softcap=5.0)
        _folded(query, key, key, mask[None, None], 1.0, 0.0)
        _folded(query, key, key, None, 1.0, 0.5)
        assert not calls
        assert quick.over(query, key, key, 1.0) is not None and calls


@needed
def test_nothing_is_read_behind_the_back_of_who_traces(calls: list[tuple[int, ...]]) -> None:
    query, key = drawn(1, 2, 1, 32, seed=0), drawn(1, 2, _MANY, 32, seed=1)
    slots = torch.zeros(1, 2, 4, dtype=torch.long)

    def both() -> tuple[Any, Any]:
        return quick.over(query, key, key, 1.0), quick.named(query, key, key, 1.0, slots, None)

    def traced(given: torch.Tensor) -> torch.Tensor:
        assert both() == (None, None)
        return given + 1

    with torch.inference_mode():
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert both() == (None, None)
        with pytest.warns(DeprecationWarning, match="deprecated"):
            torch.jit.trace(traced, (query,), check_trace=False)
        torch.compile(traced, backend="eager", fullgraph=False)(query)
        assert not calls
        assert None not in both() and len(calls) == 2


@needed
def test_named_keys_are_read_where_they_stand(calls: list[tuple[int, ...]]) -> None:
    query, key, value = drawn(2, 2, 5, 32, seed=0), drawn(1, 2, 50, 32, seed=1), drawn(1, 2, 50, 32, seed=2)
    slots = torch.randint(0, 50, (2, 2, 9), generator=torch.Generator().manual_seed(3))
    counts = torch.tensor([[9, 4], [1, 6]])
    with torch.inference_mode():
        found = quick.named(query, key, value, 0.2, slots, counts)
    assert found is not None and calls == [(2, 2, 5, 32)]
    for own, other in zip(found, few_queries.reference(query, key, value, 0.2, slots, counts), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    assert quick.named(query, key, value, 0.2, slots, counts) is None  # gradients are kept


@needed
def test_a_trial_decides_by_the_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def fastest(ways: Any, margin: float) -> tuple[int, float]:
        for way in ways:
            way()
        tried.append(len(ways))
        return len(tried) % len(ways), 1.0

    monkeypatch.setattr(quick, "fastest", fastest)
    monkeypatch.setattr(quick, "_KEYS", 64)
    assert quick._tried(torch.float32, 32) == [1, 0, 1, 0, 1, 0, 1, 0, 0] and set(tried) == {2}
    for wrong in ([1], [1, 2, 3, 0, 0, 0, 0, 0, 0], [1, 2, 0, 0, 0, 0, 0, 0, "1"]):
        with pytest.raises(ValueError, match="the ways are others"):
            quick._understood(wrong)
    monkeypatch.setattr(quick, "_ways", lambda dtype, width, threads: quick._understood([0, 1, 1, 1, 1, 1, 0, 0, 0]))
    key = drawn(1, 1, _MANY, 32, seed=1)
    with torch.inference_mode():
        for rows, wins in ((1, False), (2, True), (3, True), (32, True), (33, False), (64, False)):
            assert (quick.over(drawn(1, 1, rows, 32, seed=0), key, key, 1.0) is not None) == wins, rows


@needed
@pytest.mark.skipif(not tiles.have(), reason="this processor has no tiles of bfloat16, or may not use them")
def test_tiles_are_one_of_the_ways_where_there_are_some(
    calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for second in (True, False):  # whichever was the faster one before it
        turns = iter([second, True] * 7 + [True] * 2 + [second] * 7)
        monkeypatch.setattr(quick, "fastest", lambda ways, margin, turns=turns: (int(next(turns)), 1.0))
        monkeypatch.setattr(quick, "_KEYS", 64)
        assert quick._tried(torch.bfloat16, 32) == [2] * 9
        assert quick._tried(torch.bfloat16, 48) == [int(second)] * 7 + [0] * 2
    monkeypatch.setattr(quick, "_ways", lambda dtype, width, threads: [2] * 9)
    asked: list[int] = []
    attend = tile_queries.attend
    monkeypatch.setattr(tile_queries, "attend", lambda *given: asked.append(given[0].shape[2]) or attend(*given))
    query, key, value = (drawn(1, 2, many, 32, seed=seed).bfloat16() for seed, many in enumerate((5, _MANY, _MANY)))
    with torch.inference_mode():
        part = parts.part(query, key, value, 0.3)
        assert quick.over(query[:, :, :0], key, value, 0.3) is None
    assert not calls and asked == [5]
    for own, other in zip(part, few_queries.reference(query, key, value, 0.3), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-2, atol=1e-3)


@needed
@pytest.mark.skipif(not tiles.have(), reason="this processor has no tiles of bfloat16, or may not use them")
@pytest.mark.parametrize("parents", [[-1, 0, 1, 2], [-1, 0, 0, 1, -1, 2, 2], [-1] * 12])
@pytest.mark.parametrize("groups", [1, 3])
def test_rows_of_a_tree_go_by_tiles_with_their_own_keys(
    parents: list[int], groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one call, to what two parts and their merge give; where another kernel is the faster one, by these."""
    count, asked = len(parents), list[tuple[int, ...]]()
    rows = Rows(parents, _MANY, [None], torch.device("cpu"))
    query = drawn(1, 2 * groups, count, 32, seed=0).bfloat16()
    key, value = (drawn(1, 2, _MANY + count, 32, seed=seed).bfloat16() for seed in (1, 2))
    attend = tile_queries.attend
    monkeypatch.setattr(tile_queries, "attend", lambda *given: asked.append(given[0].shape) or attend(*given))
    found = []
    for way in (0, 1, 2):
        monkeypatch.setattr(quick, "_ways", lambda dtype, width, threads, way=way: [way] * 9)
        with torch.inference_mode():
            found.append(rows.attend(query, key, value, 0.3))
    assert asked == [(1, 2, groups * count, 32)]
    mask = rows.mask(0, _MANY + count)
    if mask is None:
        mask = torch.ones(count, _MANY + count, dtype=torch.bool).tril(_MANY)
    wide = (one.float() for one in (query, key, value))
    expected = F.scaled_dot_product_attention(*wide, mask, scale=0.3, enable_gqa=True)
    for own in found:
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own.float(), expected, rtol=2e-2, atol=2e-3)


@needed
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "phi3"])
def test_a_model_decodes_by_it_as_by_its_own_attention(family: str, calls: list[tuple[int, ...]]) -> None:
    """Heads of whole vectors; the same logits behind a long prefix, to rounding."""
    from longctx.backend.attention import installed

    shape = {"head_dim": 32} if family != "gpt_neox" else {}
    model = tiny.model(family, hidden_size=128, num_attention_heads=4, max_position_embeddings=4096, **shape)
    ids = torch.randint(4, 470, (1, _MANY), generator=torch.Generator().manual_seed(1))
    logits = []
    with torch.inference_mode():
        for own in (False, True):
            cache = model(ids[:, :-1], use_cache=True).past_key_values
            if own:
                with installed(model):
                    logits.append(model(ids[:, -1:], past_key_values=cache).logits)
            else:
                logits.append(model(ids[:, -1:], past_key_values=cache).logits)
    assert calls, "the kernel was not asked"
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-3, atol=2e-4)
