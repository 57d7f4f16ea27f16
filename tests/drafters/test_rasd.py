"""RASD: copies that the other drafter thinks implausible are pruned, the others are grafted onto its tree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import tiny
import torch

import longctx
from longctx import plugins
from longctx.drafters.document import Copying
from longctx.drafters.ngram import Ngram
from longctx.drafters.rasd import Grafting, Rasd
from longctx.drafts import Budget, Draft, DraftSource, Verified
from longctx.errors import BadOption

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Base:
    """Always proposes the same tree."""

    draft: Draft
    observed: int = 0

    def propose(self, budget: Budget) -> Draft:
        return self.draft

    def observe(self, verified: Verified) -> None:
        self.observed += len(verified.tokens)


DOCUMENT = [1, 2, 3, 4, 5, 6, 0, 1, 2, 8, 9, 9, 0, 1, 2, 3, 4, 5]


def grafted(base: Draft, **options: float) -> dict[tuple[int, ...], float]:
    source = DraftSource(np.asarray([1, 2], dtype=np.int32), 20, np.asarray(DOCUMENT, dtype=np.int32))
    at_work = Grafting(Rasd(**options), Base(base), Copying(source, 48))  # type: ignore[arg-type]
    draft = at_work.propose(Budget(20, 5))
    paths: dict[int, tuple[int, ...]] = {-1: ()}
    found: dict[tuple[int, ...], float] = {}
    for node, (token, parent) in enumerate(zip(draft.tokens.tolist(), draft.parents.tolist(), strict=True)):
        paths[node] = (*paths[parent], token)
        found[paths[node]] = max(found.get(paths[node], 0.0), float(draft.values[node]))
    return found


def tree(tokens: list[int], parents: list[int], values: list[float]) -> Draft:
    return Draft(np.asarray(tokens), np.asarray(parents), np.asarray(values))


def test_copies_hang_below_the_longest_path_they_share_with_the_base() -> None:
    found = grafted(tree([3, 7], [-1, -1], [0.8, 0.1]))
    assert {(3,), (7,), (3, 4), (3, 4, 5)} <= set(found)
    assert found[3,] == 0.8


def test_copies_the_base_has_no_room_for_are_pruned() -> None:
    assert (8,) in grafted(tree([3], [-1], [0.2]))
    assert (8,) not in grafted(tree([3], [-1], [1.0])), "the base is sure of another token"
    assert (3, 4, 5) not in grafted(tree([3], [-1], [0.8]), reach=0.79)


def test_both_learn_what_was_committed() -> None:
    source = DraftSource(np.asarray([1, 2], dtype=np.int32), 20, np.asarray(DOCUMENT, dtype=np.int32))
    base = Base(Draft.empty())
    copying = Copying(source, 48)
    Grafting(Rasd(), base, copying).observe(Verified((3, 4), np.asarray([2]), np.asarray([-1]), (0,)))
    assert base.observed == 2 and copying._history.tokens.tolist() == [1, 2, 3, 4]
    assert Rasd(base="ngram").needs == 10


class Knowing:
    """A drafter that asks for three of the likeliest tokens, and proposes what it is made with."""

    needs = 3

    def __init__(self, draft: Draft) -> None:
        self.draft, self.sources = draft, []  # type: ignore[var-annotated]

    def begin(self, source: DraftSource) -> Base:
        self.sources.append(source)
        return Base(self.draft)


def test_the_base_may_be_an_object_and_is_begun_anew_for_every_request() -> None:
    base = Knowing(tree([3, 7], [-1, -1], [0.8, 0.1]))
    drafter = plugins.resolve("drafters", Rasd(base=base))
    assert drafter.needs == 3
    source = DraftSource(np.asarray([1, 2], dtype=np.int32), 20, np.asarray(DOCUMENT, dtype=np.int32))
    one, other = drafter.begin(source), drafter.begin(source)
    assert base.sources == [source, source]
    one.observe(Verified((3, 4), np.asarray([2]), np.asarray([-1]), (0,)))
    assert (one._base.observed, other._base.observed) == (2, 0)
    named = Grafting(Rasd(), Base(base.draft), Copying(source, 48)).propose(Budget(20, 5))
    assert other.propose(Budget(20, 5)).tokens.tolist() == named.tokens.tolist() and {3, 7} <= set(
        named.tokens.tolist()
    )


def test_an_object_in_a_stack_and_a_name_draft_alike_and_what_is_no_drafter_is_refused() -> None:
    options = {"max_new_tokens": 12, "controller": "fixed:nodes=8", "eos_token_id": None, "pad_token_id": 1}
    prompt = torch.tensor([[5, 6, 7, 8, 9] * 4])
    model = tiny.model(num_hidden_layers=1)
    named, given = (
        longctx.generate(model, tiny.tokenizer(), prompt, drafters=stack, **options)  # type: ignore[arg-type]
        for stack in (["rasd:base=ngram"], [Rasd(base=Ngram())])
    )
    assert given.sequences.tolist() == named.sequences.tolist()
    assert given.stats.drafted_by_source == named.stats.drafted_by_source and given.stats.drafted > 0
    with pytest.raises(BadOption, match="drafter=7 must be a name .* or an object with"):
        Rasd(base=7).begin(DraftSource(np.asarray([1], dtype=np.int32), 20))  # type: ignore[arg-type]
    with pytest.raises(BadOption, match="drafter=<class"):
        longctx.generate(model, tiny.tokenizer(), prompt, drafters=[Rasd(base=Ngram)], **options)  # type: ignore[arg-type]
