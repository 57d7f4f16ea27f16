"""Passes that are made for their time alone: told to the control, seen by nobody else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from scripted import Scripted, Telling, plainly, right

from longctx.decoding import batch, loop, timing
from longctx.decoding.acceptance import Greedy
from longctx.decoding.controllers.fixed import Fixed
from longctx.decoding.loop import Decoding
from longctx.decoding.timing import seconds_of
from longctx.decoding.tree import TokenTree
from longctx.drafts import Budget, Draft

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


class Asking:
    """Asks for the time of ``counts`` of rows, and drafts up to eight nodes; keeps what it is told before it plans.

    ``heard`` are the products that it is told of, and 0 for each round that it is told of; ``took`` is what drafts are
    said to have taken.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts, self.told, self.asked, self.heard, self.took = counts, [], [], [], []  # type: ignore[var-annotated]

    def untimed(self, context: int) -> Sequence[int]:
        self.asked.append(context)
        return self.counts

    def expect(self, products: Mapping[int, float]) -> None:
        self.heard.append(products)

    def plan(self, depth: int, context: int) -> Budget | None:
        return Fixed(8).plan(depth, context)

    def cut(self, tree: TokenTree, seconds: float) -> TokenTree:
        self.took.append(seconds)
        return Fixed(8).cut(tree, seconds)

    def feedback(self, tokens: Sequence[int], rows: int, seconds: float, context: int) -> None:
        self.heard.append(0)
        if not tokens:
            self.told.append((rows, seconds))


class Slow(Scripted):
    """Its passes take what ``seconds`` says of their number, on a clock of its own; it keeps the shapes of rows."""

    def __init__(self, rows: Any = "tree") -> None:
        super().__init__(rows)
        self.now, self.shapes = 0.0, []  # type: ignore[var-annotated]

    def score(self, tokens: Sequence[int], parents: Sequence[int], wanted: int) -> torch.Tensor:
        self.now += 9.0 / (1 + self.passes % 2) + len(tokens)
        self.shapes.append((len(tokens), wanted, max(parents)))
        return super().score(tokens, parents, wanted)

    def perf_counter(self) -> float:
        return self.now


def test_the_better_of_two_passes_counts_and_the_target_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Slow()
    target.cache = list(PROMPT)
    monkeypatch.setattr(timing, "time", target)
    assert seconds_of(target, 6, 8) == 4.5 + 8
    assert target.cache == PROMPT and not target.pending
    assert target.shapes == [(8, 8, 3)] * 2, "a row has two below it"


@pytest.mark.parametrize("rows", ["tree", "chain", "off"])
def test_the_control_is_told_once_before_it_plans_and_no_token_changes(rows: Any) -> None:
    target, control = Scripted(rows), Asking((1, 5, 200))
    drafters = [("right", Telling(PROMPT, right))]
    decoding = Decoding(target, PROMPT, Greedy(), drafters, control, max_new_tokens=40, timing=True)
    assert list(decoding.run()) == plainly(PROMPT, 40)
    made = 4 if rows == "tree" else 0
    assert target.passes == decoding.stats.rounds + made and target.cache == decoding.committed[:-1]
    assert [count for count, _ in control.told] == ([1, 5] if made else []), "200 rows reach beyond the end"
    assert control.asked == ([len(PROMPT) + 1] if made else [])


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1]], ids=["a prompt", "one token"])
def test_the_control_is_told_of_products_once_and_before_any_round(prompt: list[int]) -> None:
    target, control = Scripted(), Asking(())
    target.products = {1: 0.5, 8: 0.75}
    decoding = Decoding(target, prompt, Greedy(), [("right", Telling(prompt, right))], control, max_new_tokens=40)
    list(decoding.run())
    assert control.heard == [target.products] + [0] * (decoding.stats.rounds - (len(prompt) > 1))


def test_the_control_is_told_what_drafting_took(monkeypatch: pytest.MonkeyPatch) -> None:
    target, control = Slow(), Asking(())

    class Late(Telling):
        def propose(self, budget: Budget) -> Draft:
            target.now += 0.25
            return super().propose(budget)

    monkeypatch.setattr(loop, "time", target)
    drafters = [(name, Late(PROMPT, right)) for name in "ab"]
    list(Decoding(target, PROMPT, Greedy(), drafters, control, max_new_tokens=40).run())
    assert len(control.took) > 3 and set(control.took) == {0.5}


def test_waiting_for_other_threads_is_no_part_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting(Slow):
        @contextmanager
        def turn(self) -> Iterator[None]:
            self.now += 1000.0
            yield

    class Told(Asking):
        def feedback(self, tokens: Sequence[int], rows: int, seconds: float, context: int) -> None:
            taken.append(seconds)

    taken: list[float] = []
    target = Waiting()
    for module in (loop, timing):
        monkeypatch.setattr(module, "time", target)
    drafters = [("right", Telling(PROMPT, right))]
    alone = Decoding(target, PROMPT, Greedy(), drafters, Told((5,)), max_new_tokens=12, timing=True)
    list(alone.run())
    assert len(taken) > 2 and max(taken) < 100 and alone.stats.seconds["verify"] < 100
    several = [Decoding(Waiting(), PROMPT, Greedy(), [], Told(()), max_new_tokens=6) for _ in range(2)]
    taken.clear()
    clock = several[0].target
    for module in (loop, batch):
        monkeypatch.setattr(module, "time", clock)

    def score(asked: Sequence[Any]) -> list[Any]:
        return [target.score(tokens, parents, wanted) for target, tokens, parents, wanted in asked]

    list(batch.Batch(several, score).run())
    assert len(taken) > 6 and max(taken) < 100


def test_without_leave_and_without_drafters_no_pass_is_made_for_its_time() -> None:
    for drafters, leave in (([("right", Telling(PROMPT, right))], False), ([], True)):
        target, control = Scripted(), Asking((1, 5))
        decoding = Decoding(target, PROMPT, Greedy(), drafters, control, max_new_tokens=40, timing=leave)
        list(decoding.run())
        assert target.passes == decoding.stats.rounds and control.told == control.asked == []
