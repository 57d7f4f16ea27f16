"""Verified rows against plain passes: attention in parts, the preallocated cache, what is kept and taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from longctx.backend import narrow, slots
from longctx.backend.fused import Fused
from longctx.backend.parts import causal_part, fold, merge, part
from longctx.backend.roads import Road
from longctx.backend.rows import Rows
from longctx.backend.target import RowTarget, StockTarget, score_together
from longctx.errors import CacheError

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.randint(4, 470, (60,), generator=torch.Generator().manual_seed(0)).tolist()
PARENTS = (-1, 0, 1, 1, 0, 4, 2, -1, 7, 7, 8, 5)  # a tree of rows with two of them behind the cache


def tensors(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plainly(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Softmax attention in float64 with keys repeated for every query head: [batch, heads, rows, dim]."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.double().repeat_interleave(groups, 1), value.double().repeat_interleave(groups, 1)
    scores = (query.double() @ key.transpose(-1, -2)) * 0.3
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value


@pytest.mark.parametrize("wide_values", [False, True])  # values of another width are not for the fused kernel
@pytest.mark.parametrize("parents", [(-1,), (-1, 0, 1), PARENTS])
def test_parts_of_the_keys_merge_to_the_whole(parents: Sequence[int], wide_values: bool) -> None:
    count, prefix = len(parents), 37
    query, key = tensors(1, 6, count, 16), tensors(1, 2, prefix + count, 16, seed=1)
    value = tensors(1, 2, prefix + count, 24 if wide_values else 16, seed=2)
    rows = Rows(parents, prefix, [None], torch.device("cpu"))
    seen = torch.cat((torch.ones(count, prefix, dtype=torch.bool), ancestors(parents)), 1)
    for way in (rows.attend, rows.at_once, rows.at_once):  # the last one finds its mask made
        out = way(query, key, value, 0.3)
        torch.testing.assert_close(out.double(), plainly(query, key, value, seen), rtol=0, atol=2e-5)


def test_a_few_rows_over_a_few_keys_are_done_at_once() -> None:
    few, many = (Rows([-1] * count, 300, [None], torch.device("cpu")) for count in (4, 40))
    assert few.short(304) and not few.short(4000) and not many.short(340)
    assert not Rows([-1], 3, [None], torch.device("meta")).short(4)


def ancestors(parents: Sequence[int]) -> torch.Tensor:
    seen = torch.eye(len(parents), dtype=torch.bool)
    for row, parent in enumerate(parents):
        while parent >= 0:
            seen[row, parent] = True
            parent = parents[parent]
    return seen


def test_parts_may_be_any_and_one_may_see_nothing() -> None:
    query, key, value = tensors(1, 4, 5, 8), tensors(1, 2, 30, 8, seed=1), tensors(1, 2, 30, 8, seed=2)
    folded = fold(query, 2)
    expected = plainly(query, key, value, torch.ones(5, 30, dtype=torch.bool))
    cuts = [0, 1, 13, 30]
    parts = [part(folded, key[:, :, a:b], value[:, :, a:b], 0.3) for a, b in zip(cuts, cuts[1:], strict=False)]
    blind = parts[0]._replace(log=torch.full_like(parts[0].log, -torch.inf))
    for many in (parts, parts[::-1], [blind, *parts]):
        torch.testing.assert_close(merge(many).view(1, 4, 5, 8).double(), expected, rtol=0, atol=2e-5)
    huge = 400 * query  # scores in the thousands
    out = merge(
        [
            part(fold(huge, 2), key[:, :, :9], value[:, :, :9], 0.3),
            part(fold(huge, 2), key[:, :, 9:], value[:, :, 9:], 0.3),
        ]
    )
    torch.testing.assert_close(
        out.view(1, 4, 5, 8).double(), plainly(huge, key, value, torch.ones(5, 30, dtype=torch.bool)), rtol=0, atol=1e-3
    )


def test_a_causal_part_is_a_masked_one() -> None:
    query, key, value = tensors(1, 6, 7, 8), tensors(1, 2, 7, 8, seed=1), tensors(1, 2, 7, 8, seed=2)
    own = causal_part(query, key, value, 0.3)
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    masked = part(fold(query, 2), key, value, 0.3, mask.repeat(3, 1))
    torch.testing.assert_close(own.out, masked.out, rtol=0, atol=1e-5)
    torch.testing.assert_close(own.log, masked.log, rtol=0, atol=1e-5)


def says(model: object, text: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([list(text)]), use_cache=False).logits[0, -1]  # type: ignore[operator]


@pytest.mark.parametrize("prefix", [0, 5, 31])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_row_of_a_tree_says_what_the_model_says_of_its_path(family: str, prefix: int) -> None:
    """Prefixes shorter and longer than the sliding window; the tree is deeper than half of it."""
    model = tiny.model(family)
    target = RowTarget(model, 8)  # fewer slots than there will be tokens: the buffers grow
    target.score(IDS[: prefix + 1], range(-1, prefix), 1)
    target.commit(range(prefix + 1))
    rows = IDS[40 : 40 + len(PARENTS)]
    seen = target.score(rows, PARENTS, len(rows))
    for row in range(len(rows)):
        path, at = [], row
        while at >= 0:
            path.append(rows[at])
            at = PARENTS[at]
        expected = says(model, [*IDS[: prefix + 1], *path[::-1]])
        torch.testing.assert_close(seen[row], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kept", [(), (0,), (0, 1, 2, 6), (0, 4, 5, 11), (7, 8, 10)])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt_neox"])
def test_after_a_commit_the_cache_is_that_of_the_kept_path(family: str, kept: Sequence[int]) -> None:
    model = tiny.model(family)
    rows = IDS[40 : 40 + len(PARENTS)]

    def fed(*passes: Sequence[int]) -> RowTarget:
        target = RowTarget(model, 200)
        for tokens in passes:
            target.score(tokens, range(-1, len(tokens) - 1), 1)
            target.commit(range(len(tokens)))
        return target

    target = fed(IDS[:20])
    target.score(rows, PARENTS, 3)
    target.commit(kept)
    straight = fed(IDS[:20], *([[rows[i] for i in kept]] if kept else []))
    assert target.length == straight.length == 20 + len(kept)
    for one, other in zip(target._cache._slots, straight._cache._slots, strict=True):
        assert (one.used, one.dropped) == (other.used, other.dropped)
        assert one.keys is not None and other.keys is not None
        torch.testing.assert_close(one.keys[:, :, : one.used], other.keys[:, :, : other.used], rtol=0, atol=1e-4)
    after = IDS[55:58]
    torch.testing.assert_close(
        target.score(after, (-1, 0, 1), 3), straight.score(after, (-1, 0, 1), 3), rtol=0, atol=1e-3
    )


def test_a_sliding_layer_holds_a_few_windows_however_long_the_text() -> None:
    model = tiny.model("mistral")
    target = RowTarget(model, 4000)
    generator = np.random.default_rng(0)
    for _ in range(60):
        target.score(generator.integers(4, 470, 5).tolist(), (-1, 0, 1, 1, 0), 1)
        target.commit((0, 1, 3))
    layer = target._cache._slots[0]
    assert layer.get_seq_length() == target.length == 180
    assert layer.used < 2 * tiny.SLIDING and layer.keys is not None
    assert layer.keys.shape[2] <= 2 * tiny.SLIDING + slots._SPARE


def test_a_failing_pass_leaves_the_cache_as_it_was() -> None:
    model = tiny.model("llama")
    target = RowTarget(model, 100)
    target.score(IDS[:9], range(-1, 8), 1)
    target.commit(range(9))
    expected = target.score(IDS[9:11], (-1, 0), 2)
    target.rollback()
    hook = model.model.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        target.score(IDS[20:24], (-1, 0, 1, 2), 1)
    hook.remove()
    assert target.length == 9
    torch.testing.assert_close(target.score(IDS[9:11], (-1, 0), 2), expected, rtol=0, atol=1e-5)
    with pytest.raises(CacheError, match="2 rows .* neither"):
        target.score(IDS[:1], (-1,), 1)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_rows_of_several_texts_share_a_pass_and_see_nothing_of_one_another(family: str) -> None:
    """Lengths shorter and longer than the sliding window, a chain, a tree and a single row; then each goes its way."""
    model = tiny.model(family)
    asked = [(3, (-1,), 1), (31, PARENTS, 5), (12, (-1, 0, 1, 2), 4)]

    def fed() -> list[RowTarget]:
        made = [RowTarget(model, 8) for _ in asked]
        for at, (target, (length, *_)) in enumerate(zip(made, asked, strict=True)):
            target.score(IDS[at : at + length], range(-1, length - 1), 1)
            target.commit(range(length))
        return made

    alone, together = fed(), fed()
    for kept in ((0,), (0, 1), ()):
        for _ in range(2):
            rows = [IDS[40 + at : 40 + at + len(parents)] for at, (_, parents, _) in enumerate(asked)]
            given = [(own, parents, wanted) for own, (_, parents, wanted) in zip(rows, asked, strict=True)]
            expected = [target.score(*one) for target, one in zip(alone, given, strict=True)]
            found = score_together(model, [(target, *one) for target, one in zip(together, given, strict=True)])
            for target, own, other in zip((*alone, *together), (*expected, *found), (*found, *expected), strict=True):
                torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-3)
                target.commit(kept if own.shape[0] > 1 else kept[:1])
    assert [target.length for target in together] == [target.length for target in alone]


def test_a_failing_pass_leaves_every_texts_cache_as_it_was() -> None:
    model = tiny.model("llama")
    targets = [RowTarget(model, 100) for _ in range(2)]
    for target, length in zip(targets, (9, 5), strict=True):
        target.score(IDS[:length], range(-1, length - 1), 1)
        target.commit(range(length))
    asked = [(target, IDS[9:11], (-1, 0), 2) for target in targets]
    expected = score_together(model, asked)
    for target in targets:
        target.rollback()
    hook = model.model.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score_together(model, asked)
    hook.remove()
    assert [target.length for target in targets] == [9, 5]
    for own, other in zip(score_together(model, asked), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5)
    with pytest.raises(CacheError, match="2 rows .* neither"):
        targets[1].score(IDS[:1], (-1,), 1)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_stock_cache_verifies_chains_and_takes_them_back(family: str) -> None:
    model = tiny.model(family)
    target = StockTarget(model, "chain")
    target.score(IDS[:20], range(-1, 19), 1)
    target.commit(range(20))
    for _ in range(3):
        seen = target.score(IDS[40:46], range(-1, 5), 6)
        for row in range(6):
            expected = says(model, [*IDS[:20], *IDS[40 : 41 + row]])
            torch.testing.assert_close(seen[row], expected, rtol=1e-3, atol=1e-3)
        target.rollback()
    target.score(IDS[40:46], range(-1, 5), 6)
    target.commit(range(2))
    torch.testing.assert_close(
        target.score([9], (-1,), 1)[0], says(model, [*IDS[:20], *IDS[40:42], 9]), rtol=1e-3, atol=1e-3
    )
    target.commit((0,))
    with pytest.raises(CacheError, match="one token after another"):
        target.score([5, 6, 7], (-1, 0, 0), 3)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_pass_that_fails_in_one_layer_leaves_every_layer_of_a_stock_cache_as_it_was(family: str) -> None:
    model = tiny.model(family)
    target = StockTarget(model, "chain")
    target.score(IDS[:20], range(-1, 19), 1)
    target.commit(range(20))
    expected = target.score(IDS[20:22], (-1, 0), 2)
    target.rollback()

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("in the third layer")

    hook = model.model.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        target.score(IDS[22:25], (-1, 0, 1), 3)
    hook.remove()
    torch.testing.assert_close(target.score(IDS[20:22], (-1, 0), 2), expected, rtol=0, atol=1e-5)


def test_a_cache_that_takes_nothing_back_says_so() -> None:
    target = StockTarget(tiny.model("llama"), "off")
    target.score(IDS[:4], range(-1, 3), 1)
    with pytest.raises(CacheError, match="takes nothing back"):
        target.commit(range(3))


def test_a_long_prompt_goes_by_the_faster_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long pieces, a short one behind them and a tree: what is kept and said is as by the model's own modules."""
    model = tiny.model("qwen2", dtype=torch.bfloat16, num_hidden_layers=2)
    tokens = [3 + i * 7 % 50 for i in range(700)]
    caches, laws = [], []
    lean = Road.logits
    monkeypatch.setattr(narrow, "_ways", lambda *_: [narrow._usual] * len(narrow.COUNTS))
    monkeypatch.setattr(Fused, "wins", lambda self, rows: False)
    for fastest in (torch.float32, torch.bfloat16):
        roads: list[bool] = []

        def noted(self: Road, *given: Any, roads: list[bool] = roads) -> Any:
            found = lean(self, *given)
            roads.append(found is not None)
            return found

        monkeypatch.setattr(Road, "logits", noted)
        for module in ("lean", "roads"):
            monkeypatch.setattr(f"longctx.backend.{module}.arithmetic", lambda *_, fastest=fastest: fastest)
        target = RowTarget(model, 800)
        said = []
        for piece in (tokens[:300], tokens[300:620], tokens[620:]):
            said.append(target.score(piece, range(-1, len(piece) - 1), 40).float())
            target.commit(range(len(piece)))
        laws.append(torch.cat((*said, target.score([5, 6, 7, 8, 9], (-1, 0, 1, 0, 3), 5).float())))
        caches.append([states for layer in range(2) for states in target.cache.held(layer)])
        assert roads == ([True, True, False, False] if fastest == torch.float32 else [False] * 4)
        assert all(states.dtype == torch.bfloat16 for states in caches[-1])
    far = [float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(*caches, strict=True)]
    assert max(far) < 0.02 and float((laws[0] - laws[1]).norm() / laws[1].norm()) < 0.05


@pytest.mark.parametrize(("kept", "expected"), [(None, torch.float16), (torch.bfloat16, torch.bfloat16)])
def test_states_are_kept_as_asked_and_handed_out_as_they_came(kept: torch.dtype | None, expected: torch.dtype) -> None:
    cache = slots.SlotCache(tiny.model("llama").config, 4, kept)
    states = tensors(1, 2, 3, 8).half()
    for _ in range(2):  # the second time the buffers grow
        keys, values = cache.update(states, 2 * states, 0)
    assert keys.dtype == values.dtype == torch.float16 and keys.shape[2] == 6
    assert all(held.dtype == expected for held in cache.held(0))
    torch.testing.assert_close(keys[:, :, 3:], states.to(expected).half(), rtol=0, atol=0)
