"""Rules of acceptance on rows of logits: what a walk through the tree commits, its noise, and what is no number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_laws import VOCAB, law, siblings

from longctx.decoding.acceptance import Greedy, Residual, Rule, SharedNoise, offers
from longctx.decoding.laws import Laws, Temperature
from longctx.decoding.noise import gumbel
from longctx.decoding.tree import TokenTree, merge
from longctx.drafts import Draft
from longctx.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the rules themselves, on rows of logits ---


def random_tree(rng: np.random.Generator, size: int) -> TokenTree:
    parents = np.asarray([rng.integers(-1, node) if node else -1 for node in range(size)])
    return merge([Draft(rng.integers(0, VOCAB, size), parents, rng.random(size))], 9, VOCAB)


def rows(tree: TokenTree, seed: int) -> torch.Tensor:
    return 2 * torch.randn(1 + len(tree), VOCAB, generator=torch.Generator().manual_seed(seed))


def stepwise(tree: TokenTree, logits: torch.Tensor, choose: Callable[[torch.Tensor, int], int]) -> list[int]:
    """Plain decoding along the tree: one token at a time until one was not drafted."""
    tokens: list[int] = []
    node = -1
    while True:
        token = choose(logits[node + 1], len(tokens))
        tokens.append(token)
        below = [c for c in range(len(tree)) if tree.parents[c] == node and tree.tokens[c] == token]
        if not below:
            return tokens
        node = below[0]


@pytest.mark.parametrize("seed", range(8))
def test_greedy_and_shared_noise_commit_what_plain_decoding_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, 14)
    logits = rows(tree, seed)

    def committed(rule: Rule) -> list[int]:
        path, token = rule.walk(tree, Laws(logits, tree, 30))
        assert path == tree.path(path[-1]) if path else True
        return [*tree.tokens[path].tolist(), token]

    assert committed(Greedy()) == stepwise(tree, logits, lambda row, _: int(row.argmax()))

    def draw(row: torch.Tensor, step: int) -> int:
        return int((row + gumbel(seed, 30 + step, VOCAB, row.device)).argmax())

    assert committed(SharedNoise(seed)) == stepwise(tree, logits, draw)


def test_a_token_taken_from_the_law_of_the_wrong_row_is_noticed() -> None:
    """Published mistake: the token after the last accepted one read from its parent's row."""
    tree = merge([Draft.chain([1, 2], [0.9, 0.8])], 2, VOCAB)
    logits = torch.zeros(3, VOCAB)
    logits[0, 1] = logits[1, 2] = logits[2, 4] = 9.0
    path, token = Greedy().walk(tree, Laws(logits, tree, 3))
    assert (path, token) == ([0, 1], 4)
    assert SharedNoise(0).walk(tree, Laws(logits * 9, tree, 3)) == ([0, 1], 4)
    assert Residual(0).walk(tree, Laws(logits * 9, tree, 3)) == ([0, 1], 4)


def test_shared_noise_follows_the_law_and_differs_between_seeds_and_positions() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0, 0.5]])
    none = merge([], 0, VOCAB)
    counts = np.zeros(VOCAB)
    for position in range(1000):
        counts[SharedNoise(11).walk(none, Laws(logits, none, position))[1]] += 1
    np.testing.assert_allclose(counts / 1000, logits.softmax(-1)[0].numpy(), atol=0.05)
    first = [[SharedNoise(s).walk(none, Laws(logits, none, t))[1] for t in range(40)] for s in (1, 2, 1)]
    assert first[0] == first[2] != first[1]


def test_noise_does_not_follow_the_number_format_of_the_process() -> None:
    expected = gumbel(3, 5, 100, torch.device("cpu"))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(gumbel(3, 5, 100, torch.device("cpu")), expected) and expected.dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


def test_the_residual_rule_on_logits_follows_the_law() -> None:
    """The walk itself, with its own random numbers: a drawn child and a proposal below it."""
    rng = np.random.default_rng(0)
    q, p = law(rng), [law(rng), law(rng)]
    counts = np.zeros(VOCAB)
    for position in range(500):
        token = int(rng.choice(VOCAB, p=q))
        tree = merge([siblings([token], [q], [(token + 1) % VOCAB])], 1, VOCAB)
        logits = torch.tensor(np.log(np.stack([p[0], *[p[1]] * len(tree)])))
        path, last = Residual(3).walk(tree, Laws(logits, tree, 2 * position))
        counts[tree.tokens[path[0]] if path else last] += 1
    np.testing.assert_allclose(counts / 500, p[0], atol=0.08)


def test_a_rejection_that_is_only_rounding_leaves_a_law() -> None:
    p = np.asarray([0.5, 0.5, 0.0, 0.0, 0.0])
    _, chances, rest = offers(merge([siblings([0], [p])], 1, VOCAB), -1, p)
    assert chances == [1.0] and np.isfinite(rest).all() and rest.sum() == pytest.approx(1)


def test_a_temperature_may_vanish_or_be_vast_without_overflow() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 3.5, 0.0]])
    none = merge([], 0, VOCAB)

    def draw(heat: float, position: int) -> int:
        laws = Laws(logits, none, position, torch.zeros(1, 1), (Temperature(heat),))
        return SharedNoise(0).walk(none, laws)[1]

    assert {draw(1e-40, t) for t in range(50)} == {3}
    assert {draw(1e30, t) for t in range(80)} == set(range(VOCAB))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "-inf everywhere"])
@pytest.mark.parametrize("rule", [Greedy(), SharedNoise(0), Residual(0)])
def test_numbers_that_are_not_finite_are_an_error_at_their_position(value: object, rule: Rule) -> None:
    tree = merge([Draft.chain([1, 2], [0.9, 0.8])], 2, VOCAB)
    logits = torch.full((3, VOCAB), -5.0)
    logits[0, 1] = 50.0  # the first token is surely accepted
    if value == "-inf everywhere":
        logits[1] = -torch.inf
    else:
        logits[1, 4] = value  # type: ignore[assignment]
    with pytest.raises(ModelError, match="position 8 is not finite"):
        rule.walk(tree, Laws(logits, tree, 7))


def test_a_token_that_the_model_forbids_is_no_error_and_never_drawn() -> None:
    none = merge([], 0, VOCAB)
    logits = torch.zeros(1, VOCAB)
    logits[0, 2] = -torch.inf
    assert all(SharedNoise(0).walk(none, Laws(logits, none, t))[1] != 2 for t in range(60))


def test_processors_see_the_committed_ids_and_the_nodes_own_path() -> None:
    tree = merge([Draft(np.asarray([1, 2, 3]), np.asarray([-1, 0, 0]), np.asarray([0.9, 0.8, 0.7]))], 3, VOCAB)
    seen: list[list[int]] = []

    def look(ids: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        seen.append(ids[0].tolist())
        return row

    logits = torch.zeros(4, VOCAB)
    logits[0, 1] = logits[1, 3] = 9.0
    path, _ = Greedy().walk(tree, Laws(logits, tree, 2, torch.tensor([[4, 0]]), (look,)))
    assert path == [0, 2]
    assert seen == [[4, 0], [4, 0, 1], [4, 0, 1, 3]]
