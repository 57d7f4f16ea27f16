"""A target whose every law is written down, and drafters that are right, wrong or broken on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from longctx.drafts import Budget, Draft, DraftSource, Kind, Take, Verified

VOCAB = 11


class Scripted:
    """Says after any text the token that follows from its last three by a fixed rule; counts its passes."""

    def __init__(self, rows: Kind = "tree", nan_at: int | None = None) -> None:
        self.rows: Kind = rows
        self.vocabulary = VOCAB
        self.cache: list[int] = []
        self.pending: list[int] = []
        self.passes = 0
        self.products: dict[int, float] = {}
        self.watched = False
        self.nan_at = nan_at  # a position whose prediction is not a number

    @property
    def length(self) -> int:
        return len(self.cache)

    @property
    def cache_bytes(self) -> int:
        return len(self.cache)

    def turn(self) -> AbstractContextManager[None]:
        return nullcontext()

    def score(self, tokens: Sequence[int], parents: Sequence[int], wanted: int) -> torch.Tensor:
        assert not self.pending
        assert self.rows != "off" or wanted == 1
        assert self.rows == "tree" or list(parents) == list(range(-1, len(tokens) - 1))
        self.passes += 1
        self.pending = list(tokens)
        out = []
        for row in range(len(tokens) - wanted, len(tokens)):
            path, at = [], row
            while at >= 0:
                path.append(tokens[at])
                at = parents[at]
            text = [*self.cache, *path[::-1]]
            logits = torch.nn.functional.one_hot(torch.tensor(follows(text)), VOCAB).float() * 4
            logits[(text[-1] * 3) % VOCAB] += 3
            out.append(logits * float("nan") if len(text) == self.nan_at else logits)
        return torch.stack(out)

    def watch(self, which: object) -> Take:
        return lambda: None  # it has no states

    def commit(self, rows: Sequence[int]) -> None:
        self.cache += [self.pending[row] for row in rows]
        self.pending = []

    def rollback(self) -> None:
        self.pending = []


def follows(text: Sequence[int]) -> int:
    return (sum(text[-3:]) * 7 + len(text) // 5 + 3) % VOCAB


def plainly(prompt: Sequence[int], count: int) -> list[int]:
    """The greedy continuation, by the rule itself."""
    text = list(prompt)
    for _ in range(count):
        text.append(follows(text))
    return text[len(prompt) :]


class Telling:
    """Proposes whatever ``tell`` says of the text so far, and keeps what it observes."""

    def __init__(self, prompt: Sequence[int], tell: object) -> None:
        self.text, self.tell = list(prompt), tell
        self.seen: list[Verified] = []

    def propose(self, budget: Budget) -> Draft:
        return self.tell(self.text, budget)  # type: ignore[operator, no-any-return]

    def observe(self, verified: Verified) -> None:
        self.text += verified.tokens
        self.seen.append(verified)


def right(text: Sequence[int], budget: Budget) -> Draft:
    """The true continuation, below a crowd of wrong siblings, and longer than asked for."""
    truth = plainly(text, budget.depth + 3)
    wrong = [token for token in range(VOCAB) if token != truth[0]][:3]
    tokens = [*wrong, *truth]
    parents = [-1, -1, -1, -1, *range(3, len(tokens) - 1)]
    return Draft(np.asarray(tokens), np.asarray(parents), np.linspace(0.9, 0.1, len(tokens)))


def wrong(text: Sequence[int], budget: Budget) -> Draft:
    return Draft.chain([(token + 1) % VOCAB for token in plainly(text, budget.depth)], [0.3] * budget.depth)


def half(text: Sequence[int], budget: Budget) -> Draft:
    """Right for two tokens, then wrong."""
    truth = plainly(text, budget.depth)
    truth[2:] = [(token + 1) % VOCAB for token in truth[2:]]
    return Draft.chain(truth, [0.9] * len(truth))


def garbage(text: Sequence[int], budget: Budget) -> Draft:
    """Ids outside the vocabulary, repeated siblings, far too many, values that are no probabilities."""
    rng = np.random.default_rng(len(text))
    size = 200
    parents = np.asarray([rng.integers(-1, node) if node else -1 for node in range(size)])
    return Draft(rng.integers(-5, 3 * VOCAB, size), parents, rng.normal(size=size) * 9)


def nothing(text: Sequence[int], budget: Budget) -> Draft:
    return Draft.empty()


def source(prompt: Sequence[int]) -> DraftSource:
    return DraftSource(np.asarray(prompt, dtype=np.int32), VOCAB)
