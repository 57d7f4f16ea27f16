"""The joint attention over what is read of a context and over new tokens, against a slow float64 softmax."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import needed
from torch import Tensor

from longctx.backend import bounded, quick
from longctx.backend.blocks import BLOCK, together
from longctx.backend.bounded import Bounded
from longctx.backend.chosen import _gathered
from longctx.backend.forks import Context, Held
from longctx.backend.meter import Meter
from longctx.errors import ModelError
from longctx.kernels import tile_queries, tiles
from longctx.keys import Choice, Index, LayerKeys, Unread
from longctx.kv.full import Full
from longctx.kv.squeezed import Squeezed

pytestmark = pytest.mark.usefixtures("one_thread")
DIM, KV_HEADS, SCALE = 16, 2, 0.3


class Fixed(Full):
    """Chooses what it is told to."""

    choice: Choice

    def choose(self, index: object, asked: object) -> Choice:
        return type(self).choice


def tensors(*shape: int, seed: int, size: float = 2.0) -> Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plainly(
    query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Softmax in float64 over keys [batch, heads, keys, dim] where ``seen`` [batch, heads, rows, keys]."""
    scores = query.double() @ keys.double().transpose(-1, -2) * SCALE
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is None:
        return scores.softmax(-1) @ values.double()
    column = sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, column), -1).softmax(-1)[..., :-1] @ values.double()


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    slots=st.integers(1, 40),
    rows=st.integers(1, 9),
    before=st.integers(0, 5),
    softcap=st.sampled_from([None, 3.0]),
    with_sinks=st.booleans(),
    wide=st.booleans(),
    padded=st.booleans(),
    size=st.sampled_from([1.0, 40.0]),
    kernels=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_any_choice_is_plain_attention_over_the_chosen_and_the_new(
    batch: int,
    groups: int,
    slots: int,
    rows: int,
    before: int,
    softcap: float | None,
    with_sinks: bool,
    wide: bool,
    padded: bool,
    size: float,
    kernels: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    heads, new, width = KV_HEADS * groups, before + rows, DIM + 4 * wide
    keys, values = tensors(KV_HEADS, slots, DIM, seed=seed), tensors(KV_HEADS, slots, width, seed=seed + 1)
    query = tensors(batch, heads, rows, DIM, seed=seed + 2, size=size)
    key, value = tensors(batch, KV_HEADS, new, DIM, seed=seed + 3), tensors(batch, KV_HEADS, new, width, seed=seed + 4)
    sinks = tensors(heads, seed=seed + 5) if with_sinks else None
    # every KV head of every row of the batch reads some slots, at least one
    order = torch.rand(batch, KV_HEADS, slots, generator=generator).argsort(-1)
    counts = torch.randint(1, slots + 1, (batch, KV_HEADS), generator=generator)
    read = torch.arange(slots) < counts[..., None]
    Fixed.choice = Choice(order, counts)
    context = Context(slots, (Held(keys, values, Index(slots, slots)),), Fixed())
    layer = Bounded(0, context.layers[0], context, Meter(slots))
    layer.update(key, value)
    own = torch.ones(rows, new, dtype=torch.bool).tril(new - rows).expand(batch, 1, rows, new).clone()
    mask = None
    if padded:
        own[0, :, :, : min(2, new - 1)] = False  # the first rows see nothing of what is new, not even themselves
        mask = own
    with torch.set_grad_enabled(not kernels):  # where gradients are kept, no kernel is taken
        out = layer.attend(query, key, value, mask, SCALE, softcap, sinks)
    chosen = torch.zeros(batch, KV_HEADS, slots, dtype=torch.bool).scatter(2, order, read)
    seen = torch.cat((chosen[:, :, None].expand(-1, -1, rows, -1), own.expand(-1, KV_HEADS, -1, -1)), -1)
    whole_keys = torch.cat((keys.expand(batch, -1, -1, -1), key), 2).repeat_interleave(groups, 1)
    whole_values = torch.cat((values.expand(batch, -1, -1, -1), value), 2).repeat_interleave(groups, 1)
    expected = plainly(query, whole_keys, whole_values, seen.repeat_interleave(groups, 1), softcap, sinks)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4 if size == 1.0 else 2e-3)


def test_an_estimate_counts_with_its_own_weight() -> None:
    """An estimate that is exact makes the answer that of all keys; one without words leaves the answer as it was."""
    keys, values = tensors(KV_HEADS, 30, DIM, seed=0), tensors(KV_HEADS, 30, DIM, seed=1)
    query = tensors(1, KV_HEADS, 1, DIM, seed=2)
    key, value = tensors(1, KV_HEADS, 1, DIM, seed=3), tensors(1, KV_HEADS, 1, DIM, seed=4)
    scores = query @ keys.transpose(-1, -2) * SCALE
    log, out = scores[..., 10:].logsumexp(-1), scores[..., 10:].softmax(-1) @ values[:, 10:]
    slots = torch.arange(10).expand(1, KV_HEADS, -1)
    found = []
    for unread in (Unread(log, out), Unread(log), None):
        Fixed.choice = Choice(slots, None, unread)
        context = Context(30, (Held(keys, values, Index(30, 30)),), Fixed())
        layer = Bounded(0, context.layers[0], context, Meter(30))
        layer.update(key, value)
        found.append(layer.attend(query, key, value, None, SCALE, None, None))
        share = layer.meter.report().unread_share
        assert (share is None) == (unread is None)
    whole = plainly(
        query,
        torch.cat((keys[None], key), 2),
        torch.cat((values[None], value), 2),
        torch.ones(1, KV_HEADS, 1, 31, dtype=torch.bool),
        None,
        None,
    )
    torch.testing.assert_close(found[0].double(), whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[1], found[2]) and not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_choice_of_nothing_leaves_the_new_tokens(softcap: float | None, rows: int) -> None:
    """What the library's kernel must not be given: it would end the process."""
    Fixed.choice = Choice(torch.empty(1, KV_HEADS, 0, dtype=torch.long))
    keys, query = tensors(KV_HEADS, 20, DIM, seed=0), tensors(1, 4, rows, DIM, seed=1)
    key, value = tensors(1, KV_HEADS, 3, DIM, seed=2), tensors(1, KV_HEADS, 3, DIM, seed=3)
    context = Context(20, (Held(keys, keys, Index(20, 5)),), Fixed())
    layer = Bounded(0, context.layers[0], context, Meter(20))
    layer.update(key, value)
    with torch.inference_mode():
        out = layer.attend(query, key, value, None, SCALE, softcap, None)
    seen = torch.ones(rows, 3, dtype=torch.bool).tril(3 - rows).expand(1, 4, -1, -1)
    expected = plainly(query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), seen, softcap, None)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    assert layer.meter.report().read_keys == 0


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 130])
def test_long_passes_are_made_in_blocks_that_join(rows: int) -> None:
    Fixed.choice = Choice()
    keys, values = tensors(KV_HEADS, 20, DIM, seed=0), tensors(KV_HEADS, 20, DIM, seed=1)
    query, key = tensors(1, 4, rows, DIM, seed=2), tensors(1, KV_HEADS, rows, DIM, seed=3)
    value = tensors(1, KV_HEADS, rows, DIM, seed=4)
    context = Context(20, (Held(keys, values, Index(20, 20)),), Fixed())
    layer = Bounded(0, context.layers[0], context, Meter(20))
    layer.update(key, value)
    out = layer.attend(query, key, value, None, SCALE, None, None)
    seen = torch.cat((torch.ones(rows, 20, dtype=torch.bool), torch.ones(rows, rows, dtype=torch.bool).tril()), 1)
    expected = plainly(
        query,
        torch.cat((keys[None], key), 2).repeat_interleave(2, 1),
        torch.cat((values[None], value), 2).repeat_interleave(2, 1),
        seen.expand(1, 4, -1, -1),
        None,
        None,
    )
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)


@needed
@pytest.mark.skipif(not tiles.have(), reason="this processor has no tiles of bfloat16, or may not use them")
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("before", [0, 4])
@pytest.mark.parametrize("batch", [1, 2])
def test_where_all_is_read_one_call_of_the_tiles_sees_both(
    rows: int, before: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says and counts what two parts and their merge do, which an audit still needs."""
    keys, values, dim = 200, tensors(KV_HEADS, 200, 32, seed=1).bfloat16(), 32
    held = Held(tensors(KV_HEADS, keys, dim, seed=0).bfloat16(), values, Index(keys, keys))
    query = tensors(batch, 3 * KV_HEADS, rows, dim, seed=2).bfloat16()
    own = [tensors(batch, KV_HEADS, before + rows, dim, seed=seed).bfloat16() for seed in (3, 4)]
    monkeypatch.setattr(quick, "_LEAST", 1)
    found, merged, calls = [], list[int](), list[int]()
    merge, attend = bounded.merge, tile_queries.attend
    monkeypatch.setattr(bounded, "merge", lambda parts: merged.append(len(parts)) or merge(parts))
    monkeypatch.setattr(tile_queries, "attend", lambda *given: calls.append(given[1].shape[2]) or attend(*given))
    for way, audit_every in ((0, 0), (2, 0), (2, 1)):
        monkeypatch.setattr(quick, "_ways", lambda dtype, width, threads, way=way: [way] * 9)
        context = Context(keys, (held,), Full())
        layer = Bounded(0, held, context, Meter(keys, audit_every))
        layer.update(*own)
        with torch.inference_mode():
            found.append((layer.attend(query, *own, None, SCALE, None, None), layer.meter.report()))
    assert merged == [2, 2] and calls[0] == keys
    assert found[0][1] == found[1][1] and found[0][1].read_keys == keys and found[2][1].true_unread_share == 0
    whole = [
        torch.cat((one.expand(batch, -1, -1, -1), other), 2)
        for one, other in zip((held.keys, values), own, strict=True)
    ]
    seen = torch.ones(rows, keys + before + rows, dtype=torch.bool).tril(keys + before)
    expected = plainly(
        query, *(one.repeat_interleave(3, 1) for one in whole), seen.expand(batch, 3 * KV_HEADS, -1, -1), None, None
    )
    for said, _ in found:
        torch.testing.assert_close(said.double(), expected, rtol=2e-2, atol=2e-2)


@needed
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("said", ["nothing", "mass", "all"])
def test_what_is_chosen_the_new_tokens_and_what_is_thought_of_the_rest_are_one_call(
    said: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says and counts what parts and their merge do, which an audit and passes of several tokens still need."""
    shape = (batch, KV_HEADS, 2)
    mass = Unread(tensors(*shape, seed=5), None, tensors(*shape, seed=6))
    unread = {"nothing": None, "mass": mass, "all": replace(mass, out=tensors(*shape, DIM, seed=7))}[said]
    counts, nothing = torch.tensor([[12, 30], [0, 7]])[:batch], said == "nothing"
    Fixed.choice = Choice(torch.randint(0, 200, (batch, KV_HEADS, 30)), counts, unread)
    held = Held(
        *(tensors(KV_HEADS, 200, DIM, seed=seed) for seed in (0, 1)), Index(200, 30), slack=torch.ones(KV_HEADS)
    )
    query = tensors(batch, 2 * KV_HEADS, 1, DIM, seed=2)
    own = [tensors(batch, KV_HEADS, 5, DIM, seed=seed) for seed in (3, 4)]
    merged, merge, found = list[int](), bounded.merge, []
    monkeypatch.setattr(bounded, "merge", lambda parts: merged.append(len(parts)) or merge(parts))
    for audit_every, quickly in ((0, True), (0, False), (1, True)):
        layer = Bounded(0, held, Context(200, (held,), Fixed()), Meter(200, audit_every))
        layer.update(*own)
        with torch.inference_mode(quickly):
            found.append((layer.attend(query, *own, None, SCALE, None, None), layer.meter.report()))
        assert len(merged) == len(found) - 1
    assert set(merged) == {3 if said == "all" else 2} and found[2][1].audited == 1
    for out, report in found[1:]:
        torch.testing.assert_close(out, found[0][0], rtol=1e-4, atol=1e-5)
        for name in ("read_keys", "unread_share", "unread_bound"):
            one, other = (getattr(each, name) for each in (report, found[0][1]))
            assert (one is None) == (other is None) == (nothing and name != "read_keys"), name
            assert one is None or one == pytest.approx(other, rel=1e-4), name


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_thought_of_the_rest_may_come_as_it_likes(dtype: torch.dtype) -> None:
    """In other formats, the same for all rows, or of nothing at all."""
    held = Held(tensors(KV_HEADS, 20, DIM, seed=0), tensors(KV_HEADS, 20, DIM, seed=1), Index(20, 4))
    query, own = tensors(1, KV_HEADS, 1, DIM, seed=2), tensors(1, KV_HEADS, 1, DIM, seed=3)
    found = []
    for log, out in ((-torch.inf, torch.zeros(1, KV_HEADS, 1, DIM)), (0.0, torch.ones(1, 1, 1, DIM)), (0.0, None)):
        unread = Unread(torch.full((1, KV_HEADS, 1), log).to(dtype), None if out is None else out.to(dtype))
        Fixed.choice = Choice(torch.arange(4).expand(1, KV_HEADS, -1), None, unread)
        for quickly in (True, False):
            layer = Bounded(0, held, Context(20, (held,), Fixed()), Meter(20))
            layer.update(own, own)
            with torch.inference_mode(quickly):
                found.append((layer.attend(query, own, own, None, SCALE, None, None), layer.meter.report()))
    for one, other in (found[0:2], found[2:4], found[4:6], found[0::4]):
        torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=1e-5)
    assert found[0][1].unread_share == 0 and not torch.allclose(found[2][0], found[4][0])


def test_numbers_that_are_none_are_told_and_large_ones_are_not() -> None:
    for bad, where, fine in ((torch.nan, 0, False), (-torch.inf, 1, False), (3e37, slice(None), True)):
        values = tensors(KV_HEADS, 4, DIM, seed=1)
        values[:, :, where] = bad
        context = Context(4, (Held(tensors(KV_HEADS, 4, DIM, seed=0), values, Index(4, 4)),), Full())
        layer = Bounded(4, context.layers[0], context, Meter(4))
        query, key = tensors(1, 4, 1, DIM, seed=2), tensors(1, KV_HEADS, 1, DIM, seed=3)
        layer.update(key, key)
        if fine:
            found = layer.attend(query, key, key, None, 0.01, None, None)
            assert bool(found.isfinite().all()) and not bool(found.sum().isfinite())
        else:
            with pytest.raises(ModelError, match=r"attention of layer 4 gave .* not finite at position 4"):
                layer.attend(query, key, key, None, 0.01, None, None)


@pytest.mark.parametrize("most", [1, 4])
def test_one_mask_serves_a_whole_batch(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "together", lambda *asked: most)
    held = Held(tensors(2, 60, 16, seed=3), tensors(2, 60, 16, seed=4), None)
    policy = Squeezed(budget=30, sinks=2, recent=4)
    held = replace(held, index=policy.index(LayerKeys(0, held.keys, held.values, held.keys, SCALE), 30))
    one = torch.ones(2 * BLOCK, 2 * BLOCK, dtype=torch.bool).tril()[None, None]
    query, key = tensors(2, 4, 2 * BLOCK, 16, seed=1), tensors(2, 2, 2 * BLOCK, 16, seed=2)
    said = []
    for mask in (one, one.expand(2, -1, -1, -1)):
        layer = Bounded(0, held, Context(60, (held,), policy), Meter(60))
        layer.update(key, key)
        said.append(layer.attend(query, key, key, mask, SCALE, None, None))
    torch.testing.assert_close(said[0], said[1])


def test_so_many_blocks_go_together_as_memory_holds_and_on_a_cpu_one() -> None:
    rows = torch.empty(1, 14, 256, 64, device="meta")
    assert [together(rows, slots) for slots in (0, 32_000, 128_000, 1_000_000)] == [4, 4, 2, 1]
    assert together(rows.expand(8, -1, -1, -1), 32_000) == 1
    assert together(torch.empty(1, 14, 256, 64), 32_000) == 1


@pytest.mark.parametrize("by", [[5, 0, -2], [0, 0, 0], [1] * 20])
def test_only_keys_that_move_are_turned(by: list[int]) -> None:
    turned: list[int] = []

    def turn(keys: Tensor, apart: Tensor) -> Tensor:
        turned.append(keys.shape[2])
        return keys * (1 + apart.unsqueeze(-1))  # nothing says more than that 0 leaves a key as it is

    keys, values = tensors(KV_HEADS, 20, DIM, seed=0), tensors(KV_HEADS, 20, DIM, seed=1)
    query, key = tensors(1, 4, 3, DIM, seed=2), tensors(1, KV_HEADS, 3, DIM, seed=3)
    slots, apart = torch.arange(20).expand(1, KV_HEADS, -1), torch.zeros(1, KV_HEADS, 20, dtype=torch.long)
    apart[:, 1, : len(by)] = torch.tensor(by)  # of one KV head
    Fixed.choice = Choice(slots, places=slots + apart)
    context = Context(20, (Held(keys, values, Index(20, 20), None, turn),), Fixed())
    layer = Bounded(0, context.layers[0], context, Meter(20))
    layer.update(key, key)
    out = layer.attend(query, key, key, None, SCALE, None, None)
    whole = torch.cat((keys[None] * (1 + apart.unsqueeze(-1)), key), 2).repeat_interleave(2, 1)
    said = torch.cat((values[None], key), 2).repeat_interleave(2, 1)
    seen = torch.cat((torch.ones(3, 20, dtype=torch.bool), torch.ones(3, 3, dtype=torch.bool).tril()), 1)
    expected = plainly(query, whole, said, seen.expand(1, 4, -1, -1), None, None)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    assert turned == {2: [2], 0: [], 20: [20]}[sum(step != 0 for step in by)]


@pytest.mark.parametrize("whole", [True, False])
def test_keys_are_gathered_from_the_beginning_of_a_longer_buffer_too(whole: bool) -> None:
    """While a text grows its keys are the first of those that there is room for."""
    room = tensors(KV_HEADS, 40, DIM, seed=0)
    states = room if whole else room[:, :30]
    assert states.is_contiguous() == whole
    slots = torch.randint(0, 30, (3, KV_HEADS, 7), generator=torch.Generator().manual_seed(1))
    expected = torch.stack([torch.stack([states[head, own[head]] for head in range(KV_HEADS)]) for own in slots])
    assert torch.equal(_gathered(states, slots), expected)
