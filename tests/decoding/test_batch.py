"""Requests side by side: what each commits, in which order it is told, and whose time a shared pass was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from scripted import Scripted, Telling, half, plainly, right, wrong

from longctx.decoding import batch as module
from longctx.decoding.acceptance import Greedy
from longctx.decoding.batch import Batch, in_order
from longctx.decoding.controllers.fixed import Fixed
from longctx.decoding.loop import Decoding
from longctx.errors import ModelError

PROMPTS = ([3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7])
TELLERS = (right, half, wrong)
COUNTS = (30, 12, 21)


def requests(rows: Any = "tree") -> list[Decoding]:
    return [
        Decoding(Scripted(rows), prompt, Greedy(), [("d", Telling(prompt, tell))], Fixed(8), max_new_tokens=count)
        for prompt, tell, count in zip(PROMPTS, TELLERS, COUNTS, strict=True)
    ]


def one_pass(asked: Sequence[Any]) -> list[Any]:
    return [target.score(tokens, parents, wanted) for target, tokens, parents, wanted in asked]


@pytest.mark.parametrize("rows", ["tree", "chain", "off"])
@pytest.mark.parametrize("score", [None, one_pass])
def test_every_request_says_what_it_says_alone(rows: Any, score: Any) -> None:
    expected = [plainly(prompt, count) for prompt, count in zip(PROMPTS, COUNTS, strict=True)]
    batch = Batch(requests(rows), score)
    found: list[list[int]] = [[] for _ in PROMPTS]
    for number, tokens in batch.run():
        found[number] += tokens
    assert found == expected == [request.new for request in batch.requests]
    rounds = [request.stats.rounds for request in batch.requests]
    assert batch.stats.rounds == sum(rounds) and batch.stats.tokens == sum(COUNTS)
    assert batch.stats.passes == (sum(rounds) if score is None else 2 + max(rounds))
    assert list(in_order(Batch(requests(rows), score))) == [token for row in expected for token in row]


def test_tokens_in_order_come_as_soon_as_it_is_their_turn() -> None:
    batch = Batch(requests(), one_pass)
    told = 0
    for token in in_order(batch):
        told += 1
        if told <= COUNTS[0]:  # nothing of the first is held back until it ends
            assert len(batch.requests[0].new) - told < 9 and token == batch.requests[0].new[told - 1]


def test_a_shared_pass_is_its_requests_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An equal share of the fastest pass, and the rest by who drafted: what a request's own rows cost it."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    told: list[list[tuple[int, float]]] = [[], []]

    class Control(Fixed):
        def __init__(self, number: int) -> None:
            super().__init__(8)
            object.__setattr__(self, "number", number)

        def feedback(self, tokens: Sequence[int], rows: int, seconds: float, context: int) -> None:
            told[self.number].append((rows, seconds))  # type: ignore[attr-defined]

    def score(asked: Sequence[Any]) -> list[Any]:
        now[0] += 1.0 + 0.1 * sum(len(tokens) - 1 for _, tokens, *_ in asked)  # a drafted row costs a tenth
        return one_pass(asked)

    prompts = PROMPTS[:2]
    drafters: list[Any] = [[("d", Telling(prompts[0], right))], []]
    made = [
        Decoding(Scripted(), prompt, Greedy(), own, Control(number), max_new_tokens=40)
        for number, (prompt, own) in enumerate(zip(prompts, drafters, strict=True))
    ]
    monkeypatch.setattr(made[0], "_drafters", ())  # the first shared pass is a plain one
    batch = Batch(made, score)
    running = batch.run()
    for _ in range(4):
        next(running)
    assert [own[-1] for own in told] == [(1, 0.5), (1, 0.5)]
    monkeypatch.setattr(made[0], "_drafters", tuple(drafters[0]))
    next(running)
    next(running)
    (rows, seconds), plain = told[0][-1], told[1][-1]
    assert rows > 4 and seconds == pytest.approx(0.5 + 0.1 * (rows - 1)) and plain == (1, pytest.approx(0.5))


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("after", [4, 7])
def test_when_one_request_fails_all_are_as_they_were_before_the_round(failing: int, after: int) -> None:
    made = requests()
    expected = [plainly(prompt, count) for prompt, count in zip(PROMPTS, COUNTS, strict=True)]
    target: Any = made[failing].target
    target.nan_at = len(PROMPTS[failing]) + after
    running = Batch(made, one_pass).run()
    before: list[Any] = []
    with pytest.raises(ModelError, match="not finite"):
        while True:
            before = [(request.new, [*request.target.cache], request.stats.rounds, request.done) for request in made]
            next(running)
    assert before == [(one.new, one.target.cache, one.stats.rounds, one.done) for one in made]
    assert not any(request.target.pending for request in made) and any(new for new, *_ in before)
    target.nan_at = None
    list(Batch(made, one_pass).run())
    assert [request.new for request in made] == expected
