"""The one draft-verify loop: prompt in, committed tokens out, several per pass of the model where drafts are right.

Owns the order of a round and what is committed when. Drafting changes how many passes are made, never what comes out.
Plain decoding is the same loop without drafters. Knows the model, drafters, rule and control by their protocols.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from longctx.decoding.acceptance import Rule
from longctx.decoding.control import Control
from longctx.decoding.guard import Guard, checked
from longctx.decoding.laws import Laws, Processor
from longctx.decoding.timing import seconds_of
from longctx.decoding.tree import TokenTree, merge
from longctx.drafts import Verified
from longctx.generated import Round, Stats
from longctx.likeliest import likeliest
from longctx.protocols import Drafting, Progress, Target
from longctx.types import FinishReason

_OTHERS = 4  # rows that were not accepted and are told of

PIECE = 2048  # prompt tokens of one prefill pass: bounds memory, and how long stopping takes

Reach = Callable[[int], int]
"""How many tokens drafts may go beyond so many committed ones."""

Ends = Callable[[Sequence[int]], bool]
"""Whether generation is over after these new tokens; asked after every single one."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The rows of one round: the ``pending`` committed tokens, then the drafted ones; ``wanted`` are their last."""

    tokens: list[int]
    parents: list[int]
    wanted: int
    pending: int
    tree: TokenTree
    seconds: float  # of drafting


@dataclass(frozen=True, slots=True)
class Judged:
    """What the rule makes of a pass: the tokens that follow, up to the end, and the nodes of the tree among them."""

    kept: list[int]
    path: list[int]
    finish: FinishReason | None  # why the generation ends with them, where it does
    seconds: float


class Decoding:
    """One request: ``committed`` tokens, of which all but the pending ones are in the target's cache."""

    def __init__(
        self,
        target: Target,
        prompt: Sequence[int],
        rule: Rule,
        drafters: Sequence[tuple[str, Drafting]],  # names and drafters at work, in the order of their proposals
        control: Control,
        *,
        max_new_tokens: int,
        needs: int = 0,
        ends: Ends = lambda new: False,
        processors: Sequence[Processor] = (),
        shown: Sequence[int] | None = None,  # what processors see in place of the prompt: the same with its padding
        piece: int = PIECE,
        reach: Reach | None = None,
        timing: bool = False,  # whether passes may be made for their time alone, where the control asks for some
        setup: float = 0.0,  # seconds that making all of the above took
        progress: Progress | None = None,
    ) -> None:
        self.committed = list(prompt)
        self.finish: FinishReason | None = "length" if max_new_tokens < 1 else None
        self.target, self._rule, self._control = target, rule, control
        self._drafters = tuple(drafters) if target.rows != "off" else ()
        self._prompt_tokens, self._limit, self._needs = len(prompt), max_new_tokens, needs
        self._ends, self._processors, self._progress = ends, processors, progress
        self._piece, self._reach, self._timing = piece, reach, timing
        self._ids = torch.tensor([list(prompt if shown is None else shown)]) if processors else None  # [1, tokens]
        self._unseen: list[list[Verified]] = [[] for _ in self._drafters]  # told to a drafter before it proposes
        self._asked = bool(self._drafters)  # whether this round was drafted for
        self._each: list[Round] = []
        self._seconds = {"setup": setup} | dict.fromkeys(("prefill", "draft", "verify", "commit"), 0.0)
        self._all_drafted = self._all_accepted = 0
        self._copied: list[tuple[int, int, int]] = []

    @property
    def done(self) -> bool:
        return self.finish is not None

    @property
    def new(self) -> list[int]:
        """The tokens generated so far."""
        return self.committed[self._prompt_tokens :]

    def run(self) -> Iterator[int]:
        """Committed tokens as they come, the one that ends the generation included."""
        self.prefill()
        while not self.done:
            yield from self.round()

    def prefill(self) -> None:
        """Afterwards at most one piece of the prompt is not in the cache; it is the first round's."""
        started = time.perf_counter()
        while (left := self.committed[self.target.length :]) and len(left) > self._piece:
            piece = left[: self._piece]
            self.target.score(piece, range(-1, len(piece) - 1), 1)
            self.target.commit(range(len(piece)))
            self._report()
        self._seconds["prefill"] += time.perf_counter() - started

    def round(self) -> list[int]:
        """One draft, one pass, and what it committed. When a drafter or the model fails, all is as it was before."""
        asked = self.ask()
        with self.target.turn():
            started = time.perf_counter()
            logits = self.target.score(asked.tokens, asked.parents, asked.wanted)
            seconds = time.perf_counter() - started
        return self.settle(asked, self.judge(asked, logits), logits, seconds)

    def ask(self) -> Asked:
        """What the next pass is asked; ``judge`` and then ``settle`` take what it says."""
        started = time.perf_counter()
        pending = self.committed[self.target.length :]
        tree = self._draft() if len(pending) == 1 else merge((), 0, 0)
        anchor = len(pending) - 1
        parents = [*range(-1, anchor), *(anchor if p < 0 else len(pending) + p for p in tree.parents.tolist())]
        tokens = [*pending, *tree.tokens.tolist()]
        return Asked(tokens, parents, 1 + len(tree), len(pending), tree, time.perf_counter() - started)

    def judge(self, asked: Asked, logits: torch.Tensor) -> Judged:
        """What follows by a pass that said ``logits`` [wanted, vocab]; nothing is committed, and nothing of it known.

        Where that fails, the asked rows are taken back.
        """
        started, tree = time.perf_counter(), asked.tree
        ids = self._ids.to(logits.device) if self._ids is not None else None
        judged = False
        try:
            laws = Laws(logits, tree, len(self.committed), ids, self._processors)
            path, last = self._rule.walk(tree, laws)
            kept, finish = self._clip([*tree.tokens[path].tolist(), last])
            judged = True
        finally:
            if not judged:
                self.target.rollback()
        return Judged(kept, path, finish, time.perf_counter() - started)

    def settle(self, asked: Asked, judged: Judged, logits: torch.Tensor, seconds: float) -> list[int]:
        """What was committed of a pass of ``seconds`` by what was judged of its ``logits`` [wanted, vocab]."""
        started, tree = time.perf_counter(), asked.tree
        kept, path = judged.kept, judged.path
        seconds += judged.seconds
        # the last kept token is the next anchor: it has no slot yet
        self.target.commit([*range(asked.pending), *(asked.pending + node for node in path[: len(kept) - 1])])
        self._note_copies(tree, path[: len(kept)])
        self.committed += kept
        self.finish = judged.finish
        if self._ids is not None:
            self._ids = torch.cat((self._ids, torch.tensor([kept])), 1)
        self._count(asked, path[: len(kept)], len(kept), seconds)
        if len(self._each) == 1:
            self._control.expect(self.target.products)
        if asked.pending == 1:
            self._control.feedback(kept, 1 + len(tree), seconds, len(self.committed) - len(kept))
        verified = self._verified(tree, path[: len(kept) - 1], kept, logits)
        for unseen in self._unseen:
            unseen.append(verified)
        first = len(self._each) == 1 and asked.pending > 1
        self._seconds["prefill" if first else "draft"] += asked.seconds
        self._seconds["prefill" if first else "verify"] += seconds
        self._seconds["commit"] += time.perf_counter() - started
        if first:
            self._report()
        return kept

    @property
    def stats(self) -> Stats:
        return Stats(
            rounds=len(self._each),
            tokens=len(self.committed) - self._prompt_tokens,
            drafted=self._all_drafted,
            accepted=self._all_accepted,
            drafted_by_source={name: sum(one.drafted[name] for one in self._each) for name, _ in self._drafters},
            accepted_by_source={name: sum(one.accepted[name] for one in self._each) for name, _ in self._drafters},
            seconds=self._seconds.copy(),
            rows=self.target.rows,
            copied=tuple(self._copied),
            each_round=tuple(self._each),
            passes=len(self._each),
            cache_bytes=self.target.cache_bytes,
            finish_reasons=() if self.finish is None else (self.finish,),
            lengths=(len(self.committed) - self._prompt_tokens,),
        )

    def _draft(self) -> TokenTree:
        depth = self._limit - (len(self.committed) - self._prompt_tokens) - 1
        if self._reach is not None:
            depth = min(depth, self._reach(len(self.committed)))
        if self._timing and self._drafters:
            self._time(depth)
        budget = self._control.plan(depth, len(self.committed)) if self._drafters and depth > 0 else None
        self._asked = budget is not None
        if budget is None:
            return merge((), 0, 0)
        drafts, started = [], time.perf_counter()
        for (name, drafter), unseen in zip(self._drafters, self._unseen, strict=True):
            with Guard(name):
                while unseen:
                    drafter.observe(unseen[0])  # one that fails is told again
                    unseen.pop(0)
                drafts.append(checked(drafter.propose(budget)))
        tree = merge(drafts, budget.depth, self.target.vocabulary)
        if sum(len(draft) > 0 for draft in drafts) > 1:
            tree = tree.proposed()  # what was drawn decides which nodes become one, and so what a cut leaves
        if self.target.rows == "chain":
            tree = tree.chain()
        return self._control.cut(tree, time.perf_counter() - started).best_path_first()

    def _time(self, depth: int) -> None:
        """Tells the control, once, what passes take that it asks for, as rounds that commit nothing; all is as before.

        Rows behind ``depth`` would stand where drafts may not, so that none are timed there. Nor are any where taking
        rows back is what costs: a chain's cache records for it from its first draft on.
        """
        self._timing, context = False, len(self.committed)
        for rows in self._control.untimed(context) if self.target.rows == "tree" else ():
            if rows <= depth:
                self._control.feedback((), rows, seconds_of(self.target, self.committed[-1], rows), context)

    def _verified(self, tree: TokenTree, path: Sequence[int], kept: Sequence[int], logits: torch.Tensor) -> Verified:
        """What drafters are told of a round; the likeliest tokens only where one of them asks.

        Of rows that were not accepted only the first, which stand on the likeliest paths: to sort the logits of a row
        takes up to a two hundredth of a pass, and the default stack drafts no better where it knows more of them.
        """
        anchor = self.committed[-len(kept) - 1]
        rows = np.concatenate(([anchor], tree.tokens))
        parents = np.concatenate(([-1], tree.parents + 1))
        accepted = (0, *(node + 1 for node in path))
        if not self._needs or not self._asked:
            return Verified(tuple(kept), rows, parents, accepted)
        others = islice((row for row in range(len(rows)) if row not in accepted), _OTHERS)
        told = (*accepted, *others)
        return Verified(tuple(kept), rows, parents, accepted, told, *likeliest(logits[list(told)], self._needs))

    def _clip(self, tokens: list[int]) -> tuple[list[int], FinishReason | None]:
        """``tokens`` up to the one that ends the generation, and why one does; never more than the limit leaves."""
        new = self.new
        for count, token in enumerate(tokens, 1):
            new.append(token)
            if self._ends(new):
                return tokens[:count], "stop"
            if len(new) >= self._limit:
                return tokens[:count], "length"
        return tokens, None

    def _count(self, asked: Asked, path: Sequence[int], tokens: int, seconds: float) -> None:
        self._all_drafted += len(asked.tree)
        self._all_accepted += len(path)
        drafted, accepted = dict[str, int](), dict[str, int]()
        for source, (name, _) in enumerate(self._drafters):
            mine = (asked.tree.sources >> source) & 1
            drafted[name], accepted[name] = int(mine.sum()), int(mine[list(path)].sum())
        self._each.append(Round(tokens, drafted, accepted, {"draft": asked.seconds, "verify": seconds}))

    def _note_copies(self, tree: TokenTree, path: Sequence[int]) -> None:
        """Accepted copies as runs; one that goes on where the latest ended makes that one longer."""
        first = len(self.committed) - self._prompt_tokens
        for new, node in enumerate(path, first):
            origin = int(tree.origins[node]) if tree.origins is not None else -1
            if origin < 0:
                continue
            if self._copied:
                start, place, count = self._copied[-1]
                if (start + count, place + count) == (new, origin):
                    self._copied[-1] = (start, place, count + 1)
                    continue
            self._copied.append((new, origin, 1))

    def _report(self) -> None:
        if self._progress is not None:
            self._progress("prompt", self.target.length, self._prompt_tokens)
