"""The kernel for a few queries: plain attention over the keys that are named, for any shape, format and threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import always_the_same, found_whatever_torch_is_told, needed, threads

from longctx.kernels import few_queries, machine, query_code

FORMATS = (torch.float32, torch.bfloat16, torch.float16)


def drawn(*shape: int, seed: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needed
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", FORMATS)
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 150)),
    vectors=st.integers(1, 5),
    shared=st.booleans(),
    how=st.sampled_from(["all", "slots", "counts", "few of all"]),
    behind=st.sampled_from([0, 0, 1, 7, 70]),
    others=st.booleans(),
    size=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 999),
)
def test_it_is_plain_attention(
    dtype: torch.dtype,
    count: int,
    shape: tuple[int, int, int, int],
    vectors: int,
    shared: bool,
    how: str,
    behind: int,
    others: bool,
    size: float,
    seed: int,
) -> None:
    (batch, heads, rows, keys), width = shape, 16 * vectors
    draw, texts = torch.Generator().manual_seed(seed), 1 if shared else batch
    query = drawn(batch, heads, rows, width, seed=seed, size=size).to(dtype)
    key = drawn(texts, heads, keys, width, seed=seed + 1).to(dtype)
    value = drawn(texts, heads, keys, width, seed=seed + 2).to(dtype)
    some: dict[str, Any] = {}
    if how in ("slots", "counts"):
        some["slots"] = torch.randint(0, keys, (batch, heads, max(1, keys // 2)), generator=draw)
    if how in ("counts", "few of all"):
        most = some["slots"].shape[2] if "slots" in some else keys
        some["counts"] = torch.randint(1, most + 1, (batch, heads), generator=draw)
    if how == "counts" and behind:
        some["counts"][0, 0] = 0  # nothing but what stands behind
    if behind:
        some["more"] = tuple(drawn(batch, heads, behind, width, seed=seed + k).to(dtype) for k in (3, 4))
    if others:
        some["said"] = drawn(batch, heads, rows, width, seed=seed + 5), drawn(batch, heads, rows, seed=seed + 6, size=9)
    with threads(count):
        out, log = few_queries.attend(query, key, value, 0.2, **some)
    expected, total = few_queries.reference(query, key, value, 0.2, **some)
    near = 2e-5 if size <= 1 else 3e-4  # of logits about a hundred more digits are gone
    assert out.dtype == log.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=near)
    torch.testing.assert_close(log, total, rtol=1e-5, atol=near)
    if how == "all" and not behind and not others:
        stock = torch.nn.functional.scaled_dot_product_attention(
            query.double(), *(one.double().expand(batch, -1, -1, -1) for one in (key, value)), scale=0.2
        )
        torch.testing.assert_close(out.double(), stock, rtol=1e-4, atol=near)


@needed
@pytest.mark.parametrize("count", [1, 2])
def test_it_reads_where_keys_stand_and_nothing_beside(count: int) -> None:
    """Keys in the middle of longer rows, between numbers that are none; slots of none are never looked at."""
    room = torch.full((2, 3, 90, 80), torch.nan).bfloat16()
    key, value = room[0, None, :, 7:58, 16:48], room[1, None, :, 7:58, 48:80]
    key.copy_(drawn(1, 3, 51, 32, seed=1))
    value.copy_(drawn(1, 3, 51, 32, seed=2))
    query = drawn(2, 3, 9, 32, seed=3)
    slots = torch.randint(0, 51, (2, 3, 40))
    slots[..., 33:] = 10**15
    counts = torch.tensor([[33, 1, 20], [32, 5, 31]])
    with threads(count):
        found = [few_queries.attend(query, key, value, 0.3), few_queries.attend(query, key, value, 0.3, slots, counts)]
    expected = [
        few_queries.reference(query, key, value, 0.3),
        few_queries.reference(query, key, value, 0.3, slots.clamp_max(50), counts),
    ]
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@needed
@pytest.mark.parametrize("count", [1, 2, 4])
def test_what_stands_behind_the_keys_and_what_others_said_is_one_attention(count: int) -> None:
    """Against one softmax over all of them, worked out in double."""
    key, value = drawn(1, 2, 40, 16, seed=1), drawn(1, 2, 40, 16, seed=2)
    query, slots = drawn(1, 2, 3, 16, seed=3), torch.tensor([[[5, 30, 17], [11, 0, 2]]])
    more = key[:, :, 36:], value[:, :, 36:]
    rest = [sorted(set(range(36)) - set(own)) for own in slots[0].tolist()]  # that nobody reads
    apart = torch.tensor([rest])[..., None].expand(-1, -1, -1, 16)
    said = few_queries.reference(query, key.gather(2, apart), value.gather(2, apart), 0.5)
    with threads(count):
        out, log = few_queries.attend(query, key, value, 0.5, slots, None, more, said)
    logits = query.double() @ key.double().transpose(-1, -2) * 0.5
    torch.testing.assert_close(out.double(), logits.softmax(-1) @ value.double(), rtol=1e-4, atol=1e-6)
    read = torch.cat((slots, torch.arange(36, 40).expand(1, 2, -1)), 2)[:, :, None].expand(-1, -1, 3, -1)
    torch.testing.assert_close(log.double(), logits.gather(-1, read).logsumexp(-1), rtol=1e-5, atol=1e-6)


@needed
@pytest.mark.parametrize("count", [1, 2, 3])
def test_others_that_said_nothing_change_nothing_and_those_above_all_are_the_answer(count: int) -> None:
    query, key = drawn(1, 2, 3, 16, seed=0), drawn(1, 2, 5, 16, seed=1)
    words, mass = drawn(1, 2, 3, 16, seed=2), torch.full((1, 2, 3), -torch.inf)
    with threads(count):
        alone, log = few_queries.attend(query, key, key, 1.0)
        for low in (-torch.inf, few_queries.LOWEST):
            found = few_queries.attend(query, key, key, 1.0, said=(words, mass.fill_(low)))
            assert torch.equal(found[0], alone) and torch.equal(found[1], log)
        torch.testing.assert_close(few_queries.attend(query, key, key, 1.0, said=(words, mass.fill_(1e4)))[0], words)
        assert bool(few_queries.attend(query, key, key, 1.0, said=(words, mass.fill_(torch.nan)))[0].isnan().all())


@needed
@pytest.mark.parametrize("count", [1, 3])
def test_rows_that_see_nothing_say_nothing_and_count_for_nothing(count: int) -> None:
    query, key = drawn(1, 2, 3, 16, seed=0), drawn(1, 2, 5, 16, seed=1)
    with threads(count):
        none = [
            few_queries.attend(query, key[:, :, :0], key[:, :, :0], 1.0, more=(key[:, :, :0], key[:, :, :0])),
            few_queries.attend(query, key[:, :, :0], key[:, :, :0], 1.0),
            few_queries.attend(query, key, key, 1.0, torch.zeros(1, 2, 0, dtype=torch.long)),
            few_queries.attend(query, key, key, 1.0, torch.zeros(1, 2, 4, dtype=torch.long), torch.zeros(1, 2).long()),
        ]
        said = drawn(1, 2, 3, 16, seed=2), drawn(1, 2, 3, seed=3)
        heard, log = few_queries.attend(query, key[:, :, :0], key[:, :, :0], 1.0, said=said)
    assert torch.equal(heard, said[0]) and bool((log <= few_queries.LOWEST).all())
    for out, log in none:
        assert out.shape == query.shape and not out.any() and bool((log <= few_queries.LOWEST).all())


@needed
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_what_is_no_number_stays_none(where: str) -> None:
    given = {name: drawn(1, 2, 40, 16, seed=seed) for seed, name in enumerate(("query", "key", "value"))}
    for bad in (torch.nan, torch.inf):
        tensors = {name: one.clone() for name, one in given.items()}
        tensors[where][0, 1, 7, 3] = bad
        out, _ = few_queries.attend(*tensors.values(), 0.5)
        assert bool(out[0, 0].isfinite().all()) and not bool(out[0, 1].isfinite().all()), (where, bad)


@needed
def test_logits_that_are_infinite_are_seen() -> None:
    query, key = torch.full((1, 1, 2, 16), 1e30), -torch.full((1, 1, 9, 16), 1e30)
    for sign in (1, -1):
        out, _ = few_queries.attend(sign * query, key, torch.ones_like(key), 1.0)
        assert bool(out.isnan().all())


@needed
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("bad", [-1, 50, 2**40])
def test_slots_and_counts_that_are_none_are_refused(count: int, bad: int) -> None:
    query, key = drawn(1, 2, 3, 16, seed=0), drawn(1, 2, 50, 16, seed=1)
    slots = torch.randint(0, 50, (1, 2, 40))
    for head, place in ((0, 0), (1, 39)):
        wrong = slots.clone()
        wrong[0, head, place] = bad
        with threads(count), pytest.raises(IndexError, match="none of 50 keys"):
            few_queries.attend(query, key, key, 1.0, wrong)
        counts = torch.tensor([[40, 40]])
        counts[0, head] = bad
        with threads(count), pytest.raises(IndexError, match="none of 0 to 40"):
            few_queries.attend(query, key, key, 1.0, slots, counts)
    few_queries.attend(query, key, key, 1.0, slots)  # and nothing of it stays


@needed
def test_keys_and_values_may_lie_each_in_its_own_way() -> None:
    """Other strides of texts, heads and keys for each; queries that are not contiguous."""
    key = drawn(41, 2, 3, 16, seed=0).permute(1, 2, 0, 3)
    value = drawn(3, 50, 2, 32, seed=1).permute(2, 0, 1, 3)[:, :, 5:46, 8:24]
    query = drawn(3, 2, 16, 4, seed=2).permute(1, 0, 3, 2)
    assert query.shape == (2, 3, 4, 16) and key.shape == value.shape == (2, 3, 41, 16)
    slots = torch.randint(0, 41, (2, 3, 7))
    more = drawn(9, 2, 3, 16, seed=3).permute(1, 2, 0, 3), drawn(3, 9, 2, 16, seed=4).permute(2, 0, 1, 3)
    for some in ((), (slots,), (slots, None, more)):
        found = few_queries.attend(query, key, value, 0.3, *some)
        for own, other in zip(found, few_queries.reference(query, key, value, 0.3, *some), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@needed
def test_what_it_cannot_read_it_refuses() -> None:
    query, key = torch.ones(1, 2, 3, 64), torch.ones(1, 2, 5, 64)
    widest = torch.ones(1, 2, 5, few_queries.WIDEST + 16)
    wrong: list[tuple[Any, ...]] = [
        (query, key.double(), key.double()),
        (query, key, key.bfloat16()),
        (query, key, key[:, :, :4]),
        (query, key[..., :9], key[..., :9]),
        (query[:, :1], key, key),
        (torch.ones(1, 2, 3, widest.shape[3]), widest, widest),
        (query, key.expand(2, -1, -1, -1), key.expand(2, -1, -1, -1)),
        (query, key.transpose(-1, -2), key.transpose(-1, -2)),
        (query.to("meta"), key, key),
    ]
    for refused in wrong:
        with pytest.raises(ValueError, match="where suits"):
            few_queries.attend(*refused, 1.0)
    slots, counts = torch.zeros(1, 2, 4, dtype=torch.long), torch.ones(1, 2, dtype=torch.long)
    several: list[dict[str, Any]] = [
        {"slots": slots.int()},
        {"slots": slots[:, :1]},
        {"slots": slots, "counts": counts.float()},
        {"counts": counts[0]},
    ]
    several += [{"more": pair} for pair in ((key, key[:, :1]), (key.bfloat16(),) * 2, (key[..., :32],) * 2)]
    several += [{"said": pair} for pair in ((query, query[..., :2]), (query.double(), query[..., 0]))]
    for some in several:
        with pytest.raises(ValueError, match="where suits"):
            few_queries.attend(query, key, key, 1.0, **some)


@needed
def test_threads_of_ones_own_may_attend_at_once() -> None:
    query, key, value = drawn(1, 2, 7, 64, seed=0), drawn(1, 2, 500, 64, seed=1), drawn(1, 2, 500, 64, seed=2)
    always_the_same(lambda: few_queries.attend(query, key, value, 0.1))


@needed
def test_a_default_device_changes_nothing() -> None:
    query, key = drawn(1, 1, 3, 64, seed=0), drawn(1, 1, 20, 64, seed=1)
    with torch.device("meta"):
        found = few_queries.attend(query, key, key, 0.1)[0]
    assert torch.equal(found, few_queries.attend(query, key, key, 0.1)[0])


@needed
def test_a_compiler_that_adds_wrongly_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    find, code = machine.checked.__wrapped__, query_code.code
    found_whatever_torch_is_told(few_queries._right)
    monkeypatch.setattr(few_queries, "_compiled", few_queries._compiled.__wrapped__)
    monkeypatch.setattr(query_code, "code", lambda *given: code(*given).replace("(float 0.0,", "(float 1.0,"))
    assert find(torch.float32, few_queries._right) == ""
    monkeypatch.setattr(machine, "compiler", lambda dtype: "")
    assert find(torch.float32, few_queries._right) == ""
