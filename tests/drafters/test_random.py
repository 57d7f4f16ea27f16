"""Random tokens are drawn evenly, are right by chance only."""

from __future__ import annotations

import numpy as np
import pytest
from scripted import VOCAB, Scripted, plainly

from longctx import plugins
from longctx.decoding.acceptance import Greedy
from longctx.decoding.controllers.fixed import Fixed
from longctx.decoding.loop import Decoding
from longctx.drafts import Budget, DraftSource
from longctx.errors import BadOption

PROMPT = [3, 1, 4, 1, 5]


def source(seed: int = 0, vocabulary: int = 50_000, tokens: int = 5) -> DraftSource:
    return DraftSource(np.arange(tokens, dtype=np.int32), vocabulary, seed=seed)


def test_tokens_are_drawn_from_the_whole_vocabulary_and_by_seed_and_place() -> None:
    drafter = plugins.load("drafters", "random:tokens=400,sure=0.5")
    draft = drafter.begin(source()).propose(Budget(1000, 1000))
    assert len(draft) == 400 and 20_000 < draft.tokens.mean() < 30_000 and draft.tokens.max() < 50_000
    assert draft.parents.tolist() == list(range(-1, 399)) and draft.values[:3].tolist() == [0.5, 0.25, 0.125]
    other = plugins.load("drafters", "random:tokens=400,seed=1").begin(source())
    for changed in (drafter.begin(source(seed=1)), drafter.begin(source(tokens=6)), other):
        assert (changed.propose(Budget(1000, 1000)).tokens != draft.tokens).mean() > 0.99
    assert len(drafter.begin(source()).propose(Budget(3, 9))) == len(drafter.begin(source()).propose(Budget(9, 3))) == 3


def test_a_token_is_right_by_chance_only() -> None:
    at_work = plugins.load("drafters", "random").begin(source(vocabulary=VOCAB))
    run = Decoding(Scripted(), PROMPT, Greedy(), [("random", at_work)], Fixed(8), max_new_tokens=400)
    assert list(run.run()) == plainly(PROMPT, 400)
    assert run.stats.rounds > 320 and run.stats.drafted > 7 * 320  # one of eleven tokens is right


def test_options_that_propose_nothing_are_refused() -> None:
    for options in ("tokens=0", "sure=0", "sure=1.5"):
        with pytest.raises(BadOption, match=options.partition("=")[0]):
            plugins.load("drafters", f"random:{options}")
