"""Rules of acceptance: the law of what comes out is the model's, summed over every branch, whatever was drafted.

Mistakes that were published in other implementations stand here as mutants; each must be caught.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scripted import Scripted
from small_laws import VOCAB, Law, law, siblings

from longctx import plugins
from longctx.decoding.acceptance import Residual, offers
from longctx.decoding.controllers.fixed import Fixed
from longctx.decoding.loop import Decoding
from longctx.decoding.tree import TokenTree, merge
from longctx.drafts import Draft, DraftSource, Draw

pytestmark = pytest.mark.usefixtures("one_thread")
Offers = Callable[[TokenTree, int, Law], tuple[list[int], list[float], Law]]


def without(q: Law, token: int) -> Law:
    left = q.copy()
    left[token] = 0.0
    return left / left.sum()


def drawings(q: Law, count: int, replace: bool) -> list[tuple[float, tuple[int, ...], tuple[Law, ...]]]:
    """Every way of drawing ``count`` siblings from q: its chance, the tokens, and the law each was drawn from."""
    ways: list[tuple[float, tuple[int, ...], tuple[Law, ...]]] = [(1.0, (), ())]
    for _ in range(count):
        longer = []
        for chance, tokens, laws in ways:
            now = q
            if not replace:
                for token in tokens:
                    now = without(now, token)
            longer += [
                (chance * now[token], (*tokens, token), (*laws, now)) for token in range(VOCAB) if now[token] > 0
            ]
        ways = longer
    return ways


def emitted(tree: TokenTree, p: Law, rule: Offers = offers) -> Law:
    """The law of the next token, every branch of the walk summed."""
    children, chances, rest = rule(tree, -1, p)
    out, reached = np.zeros(VOCAB), 1.0
    for child, chance in zip(children, chances, strict=True):
        out[tree.tokens[child]] += reached * chance
        reached *= 1.0 - chance
    return out + reached * rest


def averaged(p: Law, ways: Sequence[tuple[float, Sequence[Draft]]], rule: Offers = offers) -> Law:
    return sum((chance * emitted(merge(many, 1, VOCAB), p, rule) for chance, many in ways), start=np.zeros(VOCAB))


def schemes(rng: np.random.Generator) -> dict[str, list[tuple[float, list[Draft]]]]:
    """Ways of drafting one level, each as all its outcomes with their chances."""
    q, other = law(rng), law(rng)
    one = drawings(q, 1, True)
    two = drawings(q, 2, False)
    points = rng.permutation(VOCAB)[:2].tolist()
    return {
        "one draw": [(c, [siblings(t, laws)]) for c, t, laws in one],
        "two draws with replacement": [
            (c, [siblings(t[:1], laws[:1]), siblings(t[1:], laws[1:])]) for c, t, laws in drawings(q, 2, True)
        ],
        "two draws without replacement": [(c, [siblings(t, laws)]) for c, t, laws in two],
        "three draws without replacement": [(c, [siblings(t, laws)]) for c, t, laws in drawings(q, 3, False)],
        "proposals": [(1.0, [siblings((), (), points)])],
        "a draw and proposals that may repeat it": [
            (c, [siblings(t, laws), siblings((), (), points)]) for c, t, laws in one
        ],
        "proposals before a draw that may repeat them": [
            (c, [siblings((), (), points), siblings(t, laws)]) for c, t, laws in one
        ],
        "draws of two drafters that may agree": [
            (c * d, [siblings(t, laws), siblings(u, others)])
            for (c, t, laws), (d, u, others) in itertools.product(two, drawings(other, 1, True))
        ],
    }


NAMES = list(schemes(np.random.default_rng(0)))


@pytest.mark.parametrize("name", NAMES)
def test_the_residual_rule_emits_the_law_of_the_model(name: str) -> None:
    rng = np.random.default_rng(7)
    for _ in range(2):
        p = law(rng)
        np.testing.assert_allclose(averaged(p, schemes(rng)[name]), p, rtol=0, atol=1e-12)


def chain_law(p: Sequence[Law], q: Sequence[Law]) -> Law:
    """The joint law of two tokens and what follows, drafted as a chain of two draws, by every branch."""
    joint = np.zeros((VOCAB, VOCAB))
    for first, second in itertools.product(range(VOCAB), repeat=2):
        chance = q[0][first] * q[1][second]
        ids = np.arange(VOCAB)
        draft = Draft(
            np.asarray([first, second]),
            np.asarray([-1, 0]),
            np.asarray([0.9, 0.5]),
            (Draw(0, ids, q[0]), Draw(1, ids, q[1])),
        )
        tree = merge([draft], 2, VOCAB)
        _, (a,), rest = offers(tree, -1, p[0])
        for token in range(VOCAB):
            joint[token] += chance * (1 - a) * rest[token] * p[1]  # the second token comes from a round of its own
        _, (b,), last = offers(tree, 0, p[1])
        joint[first] += chance * a * (1 - b) * last
        joint[first, second] += chance * a * b
    return joint


def test_a_chain_emits_the_joint_law() -> None:
    rng = np.random.default_rng(3)
    p, q = [law(rng), law(rng)], [law(rng), law(rng)]
    np.testing.assert_allclose(chain_law(p, q), np.outer(p[0], p[1]), rtol=0, atol=1e-12)


def ratio_on_proposals(tree: TokenTree, node: int, p: Law) -> tuple[list[int], list[float], Law]:
    """Published mistake: a proposed child accepted by the drafter's probability, as if it had been drawn."""
    q = np.asarray([0.6, 0.3, 0.1, 0.0, 0.0])
    children = list(tree.children.get(node, {}).values())
    token = int(tree.tokens[children[0]])
    left = np.maximum(p - q, 0)
    return children[:1], [min(1.0, p[token] / q[token])], left / left.sum()


def no_residual(tree: TokenTree, node: int, p: Law) -> tuple[list[int], list[float], Law]:
    """Published mistake: after a rejection the token is drawn from the model's law itself."""
    children, chances, _ = offers(tree, node, p)
    return children, chances, p


def repeated_draw_dropped(tree: TokenTree, node: int, p: Law) -> tuple[list[int], list[float], Law]:
    """Published mistake: a draw that repeats a rejected token is skipped without its residual step."""
    seen: set[int] = set()
    kept = [d for d in tree.draws if d.node not in seen and not seen.add(d.node)]  # type: ignore[func-returns-value]
    merged = TokenTree(tree.tokens, tree.parents, tree.depths, tree.values, tree.sources, tuple(kept))
    return offers(merged, node, p)


def draws_by_value(tree: TokenTree, node: int, p: Law) -> tuple[list[int], list[float], Law]:
    """Published mistake: drawn siblings tried in the order of their probability instead of draw order."""
    tidy = sorted(tree.draws, key=lambda draw: -float(draw.probabilities[draw.ids == tree.tokens[draw.node]].sum()))
    return offers(TokenTree(tree.tokens, tree.parents, tree.depths, tree.values, tree.sources, tuple(tidy)), node, p)


def draw_per_leaf(tree: TokenTree, node: int, p: Law) -> tuple[list[int], list[float], Law]:
    """Published mistake: one random number for every path of the tree, so that shared nodes are tried several times."""
    children, chances, rest = offers(tree, node, p)
    return children, [1 - (1 - chance) ** 2 for chance in chances], rest


@pytest.mark.parametrize(
    ("mutant", "name"),
    [
        (draw_per_leaf, "proposals"),
        (ratio_on_proposals, "proposals"),
        (no_residual, "one draw"),
        (repeated_draw_dropped, "two draws with replacement"),
        (draws_by_value, "two draws without replacement"),
    ],
)
def test_published_mistakes_are_caught(mutant: Offers, name: str) -> None:
    rng = np.random.default_rng(7)
    worst = 0.0
    for _ in range(2):
        p = law(rng)
        ways = schemes(rng)[name]
        if mutant is ratio_on_proposals:
            ways = [(1.0, [siblings((), (), [0])])]
        worst = max(worst, float(np.abs(averaged(p, ways, mutant) - p).max()))
    assert worst > 1e-3


def test_a_cut_by_value_of_what_was_drawn_stays_exact_because_the_rest_are_proposals() -> None:
    rng = np.random.default_rng(5)
    p, q = law(rng), law(rng)
    ways = drawings(q, 2, False)
    out = np.zeros(VOCAB)
    kept_laws = np.zeros(VOCAB)
    for chance, tokens, laws in ways:
        draft = siblings(tokens, laws)
        worth = np.sort([float(q[token]) for token in tokens])[::-1]
        draft = Draft(draft.tokens, draft.parents, np.asarray([q[t] for t in tokens]), draft.draws)
        tree = merge([draft], 1, VOCAB).best(1)
        out += chance * emitted(tree, p)
        token = int(tree.tokens[0])
        biased = siblings([token], [q])
        kept_laws += chance * emitted(merge([biased], 1, VOCAB), p)
        assert worth[0] == q[token]
    np.testing.assert_allclose(out, p, rtol=0, atol=1e-12)
    assert np.abs(kept_laws - p).max() > 1e-3, "the wrong way would not be noticed"


@pytest.mark.parametrize("controller", ["threshold:least=0.2", "goodput", "smartspec"])
def test_a_controller_that_looks_at_values_keeps_the_law_whether_it_cuts_or_not(controller: str) -> None:
    """Published mistake: draws kept where nothing was cut and dropped elsewhere, which depends on what was drawn."""
    p, q = np.asarray([0.5, 0.3, 0.2]), np.asarray([0.6, 0.3, 0.1])
    ids, out = np.arange(3), np.zeros(3)
    for token in range(3):
        draft = Draft(np.asarray([token]), np.asarray([-1]), q[[token]], (Draw(0, ids, q),))
        control = plugins.load("controllers", controller).begin()
        for rows, seconds in ((1, 1.0), (2, 1.2)):
            control.feedback([0], rows, seconds, 0)
        control.plan(5, 0)
        children, chances, rest = offers(tree := control.cut(merge([draft], 5, 3), 0.0), -1, p)
        reached = 1.0
        for child, chance in zip(children, chances, strict=True):
            out[tree.tokens[child]] += q[token] * reached * chance
            reached *= 1.0 - chance
        out += q[token] * reached * rest
    np.testing.assert_allclose(out, p, rtol=0, atol=1e-12)


def test_a_draw_outside_the_vocabulary_keeps_the_law() -> None:
    p, out = law(np.random.default_rng(6)), np.zeros(VOCAB)
    ids, q = np.asarray([0, VOCAB + 2]), np.asarray([0.7, 0.3])
    for token, chance in zip(ids, q, strict=True):
        draft = Draft(np.asarray([token]), np.asarray([-1]), np.asarray([chance]), (Draw(0, ids, q),))
        out += chance * emitted(merge([draft], 1, VOCAB), p)
    np.testing.assert_allclose(out, p, rtol=0, atol=1e-12)


class Constant(Scripted):
    """Says the same law after every text."""

    LAW = np.asarray([0.4, 0.3, 0.15, 0.1, 0.05])

    def score(self, tokens: Sequence[int], parents: Sequence[int], wanted: int) -> torch.Tensor:
        self.pending = list(tokens)
        return torch.tensor(self.LAW).log().float().repeat(wanted, 1)


@pytest.mark.parametrize("growth", ["rsd_c", "rsd_s", "dyspec", "dyspec_threshold"])
def test_over_all_seeds_a_drawing_drafter_leaves_the_law_of_every_position(growth: str) -> None:
    """Through the loop, with each request's seed in the draws: drawn the same for all, they would bend the law."""
    drafter = plugins.load("drafters", f"ngram:growth={growth}")
    prompt, seeds, new = [0, 1, 2, 3], 400, 5
    counts = np.zeros((new, VOCAB))
    for seed in range(seeds):
        source = DraftSource(np.asarray(prompt, dtype=np.int32), VOCAB, seed=seed)
        at_work = [("ngram", drafter.begin(source))]
        run = Decoding(Constant(), prompt, Residual(seed), at_work, Fixed(12), max_new_tokens=new, needs=drafter.needs)
        counts[np.arange(new), list(run.run())] += 1
    expected = seeds * Constant.LAW
    chi = ((counts - expected) ** 2 / expected).sum(-1)
    assert (chi < 23.5).all(), chi  # four degrees of freedom: 1 in 10000
