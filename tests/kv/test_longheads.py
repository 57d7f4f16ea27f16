"""LongHeads: chunks by their representations, and keys moved into the trained window."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import tiny
import torch
from haystacks import GROUPS, KV_HEADS, SCALE, chosen, direction, haystack, put, question

import longctx.kv
from longctx.errors import BadOption
from longctx.keys import LayerKeys
from longctx.kv.longheads import LongHeads

pytestmark = pytest.mark.usefixtures("one_thread")
POLICY = LongHeads(budget=60, window=10)


def lighthouse(at: int) -> LayerKeys:
    """A haystack whose chunk with the needle looks for it too, so that its mean says what it holds."""
    layer = haystack(205, needle=at, window=205)
    start = at // 10 * 10
    layer.queries[:, start : start + 10] = direction()
    layer.values[:, at] = direction()
    return layer


@pytest.mark.parametrize("at", [3, 77, 123, 198])
@pytest.mark.parametrize("by", ["pages", "outputs"])
def test_the_chunk_of_a_needle_is_read_whole_and_the_first_and_last_always(at: int, by: Any) -> None:
    layer = lighthouse(at) if by == "outputs" else haystack(205, needle=at, window=205)
    for tokens in chosen(dataclasses.replace(POLICY, by=by, page=4), layer, question(layer))[0]:
        assert set(range(at // 10 * 10, at // 10 * 10 + 10)) <= tokens
        assert {*range(10), *range(190, 205)} <= tokens and len(tokens) == 55


@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_all_chunks_gathered_one_by_one_are_full_attention(
    family: str, move: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved as well: all of a text that is read stands where it stood."""
    model, tokens = tiny.model(family), 95
    ids = torch.randint(4, 470, (1, 115), generator=torch.Generator().manual_seed(4))
    best = LongHeads._best
    everything = lambda self, asked, chunks, count: best(self, asked, chunks, chunks.shape[2])  # noqa: E731
    monkeypatch.setattr(LongHeads, "_best", everything)
    policy = LongHeads(budget=60, window=10, move=move)
    context = longctx.kv.compress(model, ids[:, :tokens], policy)
    with torch.inference_mode(), context.attached(model) as cache:
        seen = model(ids[:, tokens:], past_key_values=cache).logits
        report = cache.report()
        expected = model(ids).logits[:, tokens:]
    assert report.read_share == 1.0 and not context.policy.lossless
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_chosen_chunks_seem_to_stand_right_before_the_new_tokens() -> None:
    layer = lighthouse(77)
    index = POLICY.index(layer, 60)
    choice = POLICY.choose(index, put(layer, index, question(layer)))
    assert choice.places is not None and choice.slots is not None
    assert choice.places[0, 0].tolist() == list(range(150, 205))
    assert (choice.slots[0].diff() > 0).all()
    staying = dataclasses.replace(POLICY, move=False)
    assert staying.choose(index, put(layer, index, question(layer))).places is None


def test_representations_are_those_of_the_paper_by_a_plain_loop() -> None:
    """2402.10685: r = softmax(mean(softmax(q k) v) k) k, for every query head of every chunk."""
    layer = haystack(40, window=40, seed=4)
    made = LongHeads(budget=30, window=10, by="outputs").index(layer, 30).tensors["chunks"][..., 0, :]
    assert made.shape == (KV_HEADS, GROUPS, 4, 16)
    for head in range(KV_HEADS * GROUPS):
        for chunk in range(4):
            part = slice(chunk * 10, chunk * 10 + 10)
            query = layer.queries[head, part].double()
            key, value = layer.keys[head // GROUPS, part].double(), layer.values[head // GROUPS, part].double()
            mean = ((query @ key.T * SCALE).softmax(-1) @ value).mean(0)
            expected = (mean @ key.T * SCALE).softmax(-1) @ key
            found = made[head // GROUPS, head % GROUPS, chunk].double()
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_page_is_the_mean_of_its_keys_where_the_chunk_is_the_beginning_of_the_text() -> None:
    layer = dataclasses.replace(haystack(40, seed=4, window=40), turn=lambda keys, by: keys + by.unsqueeze(-1))
    made = LongHeads(budget=30, window=10, page=4).index(layer, 30).tensors["chunks"]
    assert made.shape == (KV_HEADS, 1, 4, 3, 16)
    for chunk in range(4):
        for page, part in enumerate((slice(0, 4), slice(4, 8), slice(8, 10))):
            own = layer.keys[:, chunk * 10 : chunk * 10 + 10][:, part] - 10 * chunk
            torch.testing.assert_close(made[:, 0, chunk, page], own.mean(1), rtol=1e-5, atol=1e-5)


def rotated(keys: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """RoPE with frequencies that make every place look different."""
    angles = by.unsqueeze(-1) * torch.tensor([1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02])
    one, other = keys[..., :8], keys[..., 8:]
    return torch.cat((one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()), -1)


@pytest.mark.parametrize(("rows", "padding"), [(1, 0), (3, 0), (3, 2)])
def test_chunks_are_judged_by_their_best_page_and_a_query_right_behind_them(rows: int, padding: int) -> None:
    """Held against a loop over heads, rows and chunks."""
    layer = dataclasses.replace(haystack(400, seed=4, window=400), turn=rotated)
    policy = LongHeads(budget=80, window=10, page=4)
    index = policy.index(layer, 80)
    asked = dataclasses.replace(put(layer, index, question(layer, rows=rows, noise=3.0)), padding=padding)
    slots = policy.choose(index, asked).slots
    assert slots is not None
    pages = index.tensors["chunks"][:, 0]
    for head in range(KV_HEADS):
        shares = torch.zeros(40)  # of the row that wants a chunk most
        for row in range(GROUPS * rows):
            position = asked.position - rows + 1 + row % rows - padding
            query = rotated(asked.rows[0, head, row][None], torch.tensor([10 - position]))[0]
            best = torch.stack([(pages[head, chunk] @ query * SCALE).max() for chunk in range(40)])
            shares = shares.maximum(best.softmax(0))
        shares[0] = shares[-1] = torch.inf
        expected = sorted(shares.argsort(descending=True)[:8].tolist())
        assert slots[0, head].tolist() == [chunk * 10 + i for chunk in expected for i in range(10)]


@pytest.mark.parametrize("by", ["pages", "outputs"])
def test_growing_piece_by_piece_gives_the_same_index_as_at_once(by: Any) -> None:
    layer = haystack(47, window=47, seed=4)
    policy = LongHeads(budget=30, window=10, by=by, page=4)
    once = policy.index(layer, 30)
    index = None
    for stop in (10, 20, 30, 40, 47):
        part = dataclasses.replace(
            layer,
            keys=layer.keys[:, :stop],
            values=layer.values[:, :stop],
            queries=layer.queries[:, stop - (7 if stop == 47 else 10) : stop],
        )
        index = policy.index(part, 30, index)
    assert index is not None and index.tokens == once.tokens
    torch.testing.assert_close(index.tensors["chunks"], once.tensors["chunks"], rtol=1e-5, atol=1e-6)


class Watched:
    """A policy that remembers its last choice."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def choose(self, index: Any, asked: Any) -> Any:
        self.last = self.policy.choose(index, asked)
        return self.last


def test_what_passes_the_window_looks_to_the_model_like_a_short_text() -> None:
    """With one layer and one KV head, the answer is that of the chosen tokens alone, one after another."""
    model = tiny.model("llama", num_hidden_layers=1, num_key_value_heads=1)
    ids = torch.randint(4, 470, (1, 206), generator=torch.Generator().manual_seed(0))
    policy = Watched(POLICY)
    context = longctx.kv.compress(model, ids[:, :205], policy)
    with torch.inference_mode(), context.attached(model) as cache:
        seen = model(ids[:, 205:], past_key_values=cache).logits[0, -1]
        short = ids[0, policy.last.slots[0, 0]]
        assert len(short) == 55
        expected = model(torch.cat((short, ids[0, 205:]))[None]).logits[0, -1]
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)


def test_options_that_cannot_be() -> None:
    with pytest.raises(BadOption, match="window=0"):
        LongHeads(window=0)
    with pytest.raises(BadOption, match="page=0"):
        LongHeads(page=0)
