"""LM-Infinite: the first tokens and the last, constant memory, and a ceiling of distance."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from haystacks import chosen, haystack, put, question
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import longctx.kv
from longctx.errors import BadOption
from longctx.kv.lm_infinite import LmInfinite

pytestmark = pytest.mark.usefixtures("one_thread")
POLICY = LmInfinite(budget=40, sinks=4, window=16)


@pytest.mark.parametrize("at", [2, 100, 190])
def test_a_needle_in_the_middle_is_lost(at: int) -> None:
    layer = haystack(200, needle=at)
    for tokens in chosen(POLICY, layer, question(layer))[0]:
        assert tokens == {*range(4), *range(164, 200)}
        assert (at in tokens) == (at != 100)


def test_memory_is_the_same_however_long_the_text_is() -> None:
    model = tiny.model("llama")
    ids = torch.randint(4, 470, (400,), generator=torch.Generator().manual_seed(0))
    sizes = {longctx.kv.compress(model, ids[:count], POLICY).nbytes for count in (60, 200, 400)}
    assert len(sizes) == 1


def test_no_room_is_made_for_keys_that_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for a whole text used to be made while it was read, on a GPU more than there is."""
    model, made = tiny.model("llama"), []
    new_empty = Tensor.new_empty
    watched = lambda self, *size, **given: made.append(size) or new_empty(self, *size, **given)  # noqa: E731
    monkeypatch.setattr(Tensor, "new_empty", watched)
    ids = torch.randint(4, 470, (900,), generator=torch.Generator().manual_seed(0))
    longctx.kv.compress(model, ids, POLICY)
    assert made and not [size for size in made if 900 in size]
    longctx.kv.compress(model, ids, dataclasses.replace(POLICY, middle=4, deep=0))
    assert [size for size in made if 900 in size], "all keys are kept, and room for them is made once"


def test_no_key_seems_further_away_than_the_ceiling() -> None:
    layer = haystack(200)
    policy = dataclasses.replace(POLICY, ceiling=50)
    index = policy.index(layer, 40)
    choice = policy.choose(index, put(layer, index, question(layer, rows=3)))
    assert choice.places is not None
    assert (choice.places[0, 0, :4] == 202 - 50).all()
    assert choice.places[0, 0, 4:].tolist() == list(range(164, 200))


def test_without_sinks_the_ceiling_holds_too() -> None:
    layer = haystack(200)
    policy = dataclasses.replace(POLICY, sinks=0, ceiling=30)
    index = policy.index(layer, 40)
    places = policy.choose(index, put(layer, index, question(layer, rows=3))).places
    assert places is not None
    assert places[0, 0].tolist() == [172] * 12 + list(range(172, 200))


def test_new_tokens_see_the_first_and_the_last_tokens_of_the_context() -> None:
    """With one layer, the same as a stock pass whose mask hides the others."""
    model = tiny.model("llama", num_hidden_layers=1)
    ids = torch.randint(4, 470, (1, 30), generator=torch.Generator().manual_seed(0))
    context = longctx.kv.compress(model, ids[:, :24], "lm_infinite:budget=10,sinks=3,ceiling=1000,window=4")
    seen = torch.ones(30, 30, dtype=torch.bool).tril()
    seen[24:, 3:17] = False
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    with torch.inference_mode():
        expected = model(ids, attention_mask=mask).logits[:, 24:]
        with context.attached(model) as cache:
            found = model(ids[:, 24:], past_key_values=cache).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def rotated(model: Any, states: Tensor, by: Tensor) -> Tensor:
    """``states`` [some, dim] as rotary positions ``by`` [some] have them."""
    angles = by[:, None] * model.model.rotary_emb.inv_freq
    one, other = states.chunk(2, -1)
    return torch.cat((one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()), -1)


@torch.inference_mode()
def plainly(model: Any, ids: Tensor, context: int, rows: int, policy: LmInfinite) -> Tensor:
    """Logits of the tokens behind ``context``, ``rows`` in a pass: by unrotated keys, query by query, head by head.

    Every key has a position where it seems to stand for the last token of the pass.
    """
    assert policy.budget is not None and policy.ceiling is not None and policy.apart is not None
    pieces = [range(at, min(at + policy.window, context)) for at in range(0, context, policy.window)]
    pieces += [range(at, min(at + rows, len(ids))) for at in range(context, len(ids), rows)]
    kept: list[tuple[Tensor, Tensor]] = [(torch.empty(0, 2, 16), torch.empty(0, 2, 16)) for _ in model.model.layers]
    said = []
    for piece in pieces:
        read, now = min(piece[0], context), piece[-1]  # tokens of the context before the pass, and where it ends
        first = min(policy.sinks, read)
        last = max(first, read - (policy.budget - first - policy.middle))
        states = model.model.embed_tokens(ids[piece[0] : now + 1])
        for number, layer in enumerate(model.model.layers):
            own, normed = layer.self_attn, layer.input_layernorm(states)
            queries = own.q_proj(normed).view(len(piece), 4, 16)
            fresh = [part(normed).view(len(piece), 2, 16) for part in (own.k_proj, own.v_proj)]
            keys, values = (torch.cat(pair) for pair in zip(kept[number], fresh, strict=True))
            kept[number] = (keys, values)
            out = torch.empty(len(piece), 4, 16)
            for kv in range(2):
                best: list[int] = []
                if piece[0] >= context and number >= policy.deep:
                    votes = torch.zeros(last - first)
                    for query in queries[:, 2 * kv : 2 * kv + 2].reshape(-1, 16):
                        turned = rotated(model, query[None], torch.tensor([policy.apart]))[0]
                        votes += (keys[first:last, kv] @ turned * own.scaling).softmax(0)
                    best = [first + int(at) for at in votes.argsort(descending=True)[: policy.middle]]
                seen = [*range(first), *best, *range(last, read)]
                places = [now - policy.apart if at in best else max(at, now - policy.ceiling) for at in seen]
                for row, position in enumerate(piece):
                    new = list(range(read, position + 1))
                    distances = position - torch.tensor(places + new)
                    for head in (2 * kv, 2 * kv + 1):
                        turned = rotated(model, queries[row, head].expand(len(distances), -1), distances)
                        weights = ((turned * keys[seen + new, kv]).sum(-1) * own.scaling).softmax(0)
                        out[row, head] = weights @ values[seen + new, kv]
            states = states + own.o_proj(out.reshape(len(piece), -1))
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        if piece[0] >= context:
            said.append(model.lm_head(model.model.norm(states)))
    return torch.cat(said)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"middle": 3, "deep": 1, "ceiling": 20, "apart": 10},
        {"middle": 2, "deep": 0, "ceiling": 12, "apart": 30},
        {"middle": 5, "deep": 2, "ceiling": 50, "apart": 1},
        {"middle": 0, "ceiling": 9, "apart": 9},
    ],
)
def test_it_says_what_plain_attention_from_moved_places_says(options: dict[str, int], rows: int) -> None:
    model = tiny.model("llama", num_hidden_layers=3)
    ids = torch.randint(4, 470, (46,), generator=torch.Generator().manual_seed(3))
    policy = LmInfinite(budget=14, sinks=3, window=8, **options)
    context = longctx.kv.compress(model, ids[:40], policy)
    with torch.inference_mode(), context.attached(model) as cache:
        found = [model(part[None], past_key_values=cache).logits[0] for part in ids[40:].split(rows)]
    expected = plainly(model, ids, 40, rows, policy)
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("deep", [0, 2])
def test_a_needle_in_the_middle_is_found_again_in_the_deeper_layers(deep: int) -> None:
    layer = haystack(200, needle=100)  # of layer 1
    policy = dataclasses.replace(POLICY, middle=3, deep=deep)
    for tokens in chosen(policy, layer, question(layer, batch=2))[0]:
        assert {*range(4), *range(167, 200)} <= tokens and len(tokens) == (40 if deep == 0 else 37)
        assert (100 in tokens) == (deep == 0)


def test_the_middle_seems_to_stand_half_the_ceiling_away_where_nothing_is_said() -> None:
    layer = haystack(200)
    policy = dataclasses.replace(POLICY, middle=3, deep=0, ceiling=50)
    for apart, place in ((None, 202 - 25), (7, 202 - 7)):
        made = dataclasses.replace(policy, apart=apart)
        choice = made.choose(made.index(layer, 40), question(layer, rows=3))
        assert choice.places is not None
        assert choice.places[0, 0].tolist() == [152] * 4 + list(range(167, 200)) + [place] * 3


def test_the_middle_is_looked_for_once_the_context_is_read() -> None:
    layer = dataclasses.replace(haystack(200, needle=100), whole=False)
    policy = dataclasses.replace(POLICY, middle=3, deep=0)
    for tokens in chosen(policy, layer, question(layer))[0]:
        assert tokens == {*range(4), *range(167, 200)}


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(20, 90), budget=st.integers(9, 60), sinks=st.integers(0, 4), middle=st.integers(1, 4),
    rows=st.integers(1, 3),
)  # fmt: skip
def test_sinks_middle_and_recent_fill_the_budget(tokens: int, budget: int, sinks: int, middle: int, rows: int) -> None:
    policy = LmInfinite(budget=budget, sinks=sinks, middle=middle, deep=0)
    if policy.slots(tokens) >= tokens:
        return
    layer = haystack(tokens, seed=tokens)
    for head in chosen(policy, layer, question(layer, rows, noise=1.0))[0]:
        assert len(head) == budget and {*range(sinks), *range(tokens - (budget - sinks - middle), tokens)} <= head


def test_the_middle_is_part_of_the_budget() -> None:
    policy = LmInfinite(keep=0.01, sinks=10, middle=5)
    assert (
        policy.slots(1500) == 1500
        and "budget of 15 slots of 1500 tokens, not above the 15 that are always read (sinks and middle)"
        in policy.shortfall(1500)
    )
    assert policy.slots(1600) == 16 and not policy.shortfall(1600)
    with pytest.raises(BadOption, match="not above the 15"):
        LmInfinite(budget=15, sinks=10, middle=5).slots(1500)


def test_the_bytes_of_the_middle_are_planned() -> None:
    model = tiny.model("llama")
    ids = torch.randint(4, 470, (1, 400), generator=torch.Generator().manual_seed(2))
    for deep, least in ((0, 0.999), (2, 0.5)):  # a plan counts all layers
        policy = LmInfinite(budget=100, sinks=2, middle=4, deep=deep)
        planned = 4 * (2 * 2 * 400 * 16 * 4 + policy.index_bytes(400, 4, 2, 16, 4))
        assert least < longctx.kv.compress(model, ids, policy).nbytes / planned < 1.001


def test_rows_with_padding_and_a_stored_context_find_the_same_middle(tmp_path: Path) -> None:
    model = tiny.model("qwen2")
    ids = torch.randint(4, 470, (2, 66), generator=torch.Generator().manual_seed(4))
    ids[1, :60] = ids[0, :60]
    context = longctx.kv.compress(model, ids[:1, :60], "lm_infinite:budget=20,sinks=2,window=8,middle=5,deep=1")
    context.save(tmp_path / "context")
    alone = []
    for row, start in ((0, 60), (1, 63)):
        with torch.inference_mode(), longctx.kv.load(tmp_path / "context", model).attached(model) as cache:
            alone.append(model(ids[row : row + 1, start:], past_key_values=cache).logits[0])
    seen = torch.ones(2, 66, dtype=torch.long)
    seen[1, 60:63] = 0
    with torch.inference_mode(), context.attached(model) as cache:
        places = (seen.cumsum(1) - 1)[:, 60:]
        both = model(ids[:, 60:], attention_mask=seen, position_ids=places, past_key_values=cache).logits
    torch.testing.assert_close(both[0], alone[0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(both[1, 3:], alone[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "reach"),
    [
        ({}, 300),
        ({"ceiling": 120}, 255),  # a piece of the text sees itself whole
        ({"ceiling": 120, "window": 64}, 120),
        ({"ceiling": 700}, 700),
        ({"ceiling": 2000}, 1000),
        ({"ceiling": 120, "apart": 400, "window": 64}, 120),
        ({"ceiling": 120, "apart": 400, "middle": 5}, 400),
        ({"middle": 5}, 300),
    ],
)
def test_it_reaches_as_far_as_a_key_may_seem_to_stand(options: dict[str, int], reach: int) -> None:
    assert LmInfinite(budget=300, **options).reach(1000) == reach


def test_options_that_cannot_be() -> None:
    with pytest.raises(BadOption, match="ceiling=0"):
        LmInfinite(ceiling=0)
    with pytest.raises(BadOption, match="middle=-1"):
        LmInfinite(middle=-1)
    with pytest.raises(BadOption, match="apart=0"):
        LmInfinite(apart=0)
