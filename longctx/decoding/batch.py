"""Several requests decoded side by side: each drafts for itself, and one pass of the model verifies the rows of all.

Owns whose turn it is and what each request is told of the time of a shared pass. Knows no model and no draft.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from longctx.decoding.loop import Asked, Decoding, Judged
from longctx.generated import Stats

Score = Callable[[Sequence[tuple[Any, Sequence[int], Sequence[int], int]]], Sequence[Any]]
"""Logits [wanted, vocab] for each (target, tokens, parents, wanted), as ``Target.score`` gives them, by one pass."""


class Batch:
    """``requests`` in the order of their prompts; without ``score`` one begins when the one before it has ended.

    Whether rows are verified together changes no request: each has a cache, drafters, a control and random numbers of
    its own, and ends when it ends.
    """

    def __init__(self, requests: Sequence[Decoding], score: Score | None) -> None:
        self.requests = tuple(requests)
        self._score, self._passes = score, 0
        self._fastest = math.inf

    def run(self) -> Iterator[tuple[int, list[int]]]:
        """Committed tokens as they come, each time with the number of their request."""
        for number, request in enumerate(self.requests):
            if not request.done:
                request.prefill()
                yield from self._alone(number)
                while self._score is None and not request.done:  # its model may keep a state that is its own alone
                    yield from self._alone(number)
        while live := [number for number, request in enumerate(self.requests) if not request.done]:
            if self._score is None or len(live) == 1:
                yield from self._alone(live[0])
            else:
                yield from zip(live, self._shared(self._score, [self.requests[number] for number in live]), strict=True)

    def _alone(self, number: int) -> Iterator[tuple[int, list[int]]]:
        self._passes += 1
        yield number, self.requests[number].round()

    @property
    def stats(self) -> Stats:
        """The counts of all requests together."""
        return replace(sum((request.stats for request in self.requests), Stats()), passes=self._passes)

    def _shared(self, score: Score, live: Sequence[Decoding]) -> list[list[int]]:
        """One round of each, verified by one pass. When one fails, all are as they were before."""
        asked = [request.ask() for request in live]
        with live[0].target.turn():
            started = time.perf_counter()
            found = score([(r.target, a.tokens, a.parents, a.wanted) for r, a in zip(live, asked, strict=True)])
            found[-1].flatten()[0].item()  # a device is waited for, or the first request would be told of all its work
            seconds = self._shares(asked, time.perf_counter() - started)
        self._passes += 1
        judged = _judged(live, asked, found)
        settled = zip(live, asked, judged, found, seconds, strict=True)
        return [request.settle(own, said, logits, spent) for request, own, said, logits, spent in settled]

    def _shares(self, asked: Sequence[Asked], seconds: float) -> list[float]:
        """What each request's rows cost: an equal share of the fastest pass so far, and of the rest by drafted rows.

        Were each told of the whole pass, the rows of the others would make its own look free.
        """
        self._fastest = min(self._fastest, seconds)
        drafted = [len(own.tokens) - own.pending for own in asked]
        if not sum(drafted):
            return [seconds / len(asked)] * len(asked)
        plain, rest = self._fastest / len(asked), seconds - self._fastest
        return [plain + rest * own / sum(drafted) for own in drafted]


def _judged(live: Sequence[Decoding], asked: Sequence[Asked], found: Sequence[Any]) -> list[Judged]:
    """What every request makes of its rows; nothing is committed before all have, and where one fails nothing is."""
    complete = False
    try:
        judged = [request.judge(own, logits) for request, own, logits in zip(live, asked, found, strict=True)]
        complete = True
    finally:
        if not complete:
            for request in live:
                request.target.rollback()
    return judged


def in_order(batch: Batch) -> Iterator[int]:
    """The tokens of the first request as they come, then those of the next, to the last."""
    told: list[list[int]] = [[] for _ in batch.requests]
    turn, said = 0, 0
    for number, tokens in batch.run():
        told[number] += tokens
        while turn < len(told):
            yield from told[turn][said:]
            said = len(told[turn])
            request = batch.requests[turn]
            if not request.done or said < len(request.new):  # a shared pass may have ended it before it is told
                break
            turn, said = turn + 1, 0
