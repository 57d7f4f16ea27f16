"""Prompt lookup proposes what Hugging Face's own candidate generator proposes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from longctx import plugins
from longctx.drafts import Budget, DraftSource
from longctx.errors import BadOption


@pytest.mark.parametrize(("tokens", "ngram"), [(10, 2), (5, 3), (1, 1)])
def test_the_copies_are_those_of_the_original(tokens: int, ngram: int) -> None:
    drafter = plugins.load("drafters", f"lookup:tokens={tokens},ngram={ngram}")
    original = PromptLookupCandidateGenerator(
        num_output_tokens=tokens, max_matching_ngram_size=ngram, max_length=10_000
    )
    rng = np.random.default_rng(0)
    hits = 0
    for size in (2, 5, 9, 20, 40, 60):
        for _ in range(6):
            text = rng.integers(0, 6, size)
            candidates, _ = original.get_candidates(torch.tensor(text[None]))
            draft = drafter.begin(DraftSource(text.astype(np.int32), 6)).propose(Budget(64, 64))
            assert draft.tokens.tolist() == candidates[0, size:].tolist()
            hits += len(draft) > 0
    assert hits > 20


def test_options_that_propose_nothing_are_refused() -> None:
    with pytest.raises(BadOption, match="tokens=0"):
        plugins.load("drafters", "lookup:tokens=0")
